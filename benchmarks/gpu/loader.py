"""Loader sections of the GPU suite: cache fill, streaming, gather, and the share of a step."""

import dataclasses
import functools
import itertools
import os
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from benchmarks.gpu.suite import Suite, measured
from benchmarks.store import FRAME_HW, build_store, synthetic_jpegs
from pipeline.batch import Batch
from pipeline.config import (
    AugmentConfig,
    CacheCodec,
    CacheConfig,
    ImageDtype,
    PipelineConfig,
    ViewConfig,
    ViewKind,
)

IMAGES_OF_A_LARGE_SET: Final = 400_000
"""Number of 256 px frames of a large hand-object dataset that must fit."""


def synthetic_store(suite: Suite) -> Path:
    """Return the store of 640x480 frames, built at its first use."""
    if suite.store is None:
        begin, path = time.perf_counter(), suite.out / "store.zarr"
        jpegs = synthetic_jpegs(suite.num, seed=0)
        build_store(path, jpegs)
        seconds = time.perf_counter() - begin
        suite.note("synthetic store", "build", "s", seconds, num=len(jpegs))
        suite.store = path
    return suite.store


def config_of(suite: Suite, codec: CacheCodec = CacheCodec.rgb) -> PipelineConfig:
    """Return the loader of the suite's store, as training uses it."""
    batch, cache_px, input_px = (256, 256, 224) if suite.on_gpu else (16, 64, 56)
    return PipelineConfig(
        store=str(synthetic_store(suite)),
        split="all",
        batch_size=batch,
        input_px=input_px,
        image_dtype=ImageDtype.bfloat16 if suite.on_gpu else ImageDtype.float32,
        channels_last=True,
        view=ViewConfig(kind=ViewKind.frame),
        cache=CacheConfig(size_px=cache_px, codec=codec),
        augment=AugmentConfig(),
    )


def fill_and_stream(suite: Suite) -> None:
    """Measure the cache fill by load and batch size, against a bare decode; then streaming."""
    from pipeline.loader import Loader

    loads, sizes = ((0.65, 0.9, 0.0), (64, 128, 256)) if suite.on_gpu else ((0.65,), (64,))
    for size, load in itertools.product(sizes, loads):
        config = config_of(suite)
        cache = dataclasses.replace(config.cache, hw_decoder_load=load, decode_batch=size)
        with Loader(dataclasses.replace(config, cache=cache), device=suite.device) as loader:
            held = loader.resident
            assert held is not None
            rate = held.num_images / held.seconds
            suite.note("fill", "decode to cache", "images/s", rate, load=load, batch=size)
    bare = 0.0
    for size in sizes:
        rate = bare_decode_rate(suite, size)
        suite.note("bare DALI decode of the store", "decode", "images/s", rate, batch=size)
        bare = max(bare, rate)
    best = max(row.p50 for row in suite.rows if row.variant == "fill")
    suite.note("fill", "of a bare decode", "%", 100 * best / bare)

    config = config_of(suite, CacheCodec.stream)
    with Loader(config, device=suite.device) as loader:
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        steps, begin = (40 if suite.on_gpu else 3), time.perf_counter()
        for _ in range(steps):
            next(batches)
        wait(suite)
        rate = steps * config.batch_size / (time.perf_counter() - begin)
    suite.note("stream", "batches", "images/s", rate)
    suite.note("stream", "of a bare decode", "%", 100 * rate / bare)


def bare_decode_rate(suite: Suite, batch: int) -> float:
    """Return the images per second of DALI alone on the store's JPEGs, once through."""
    from nvidia.dali import Pipeline, fn, types

    from pipeline.store.reader import open_store

    store = open_store(synthetic_store(suite))
    jpegs = [jpeg for _, jpeg in store.scan(range(store.num_rows))]
    batches = [jpegs[i : i + batch] for i in range(0, len(jpegs), batch)]
    hints: dict[str, Any] = {}
    if suite.on_gpu:
        height, width = FRAME_HW
        hints = {"preallocate_height_hint": height, "preallocate_width_hint": width}
    pipe = Pipeline(
        batch_size=batch,
        num_threads=len(os.sched_getaffinity(0)),
        device_id=0 if suite.on_gpu else None,
        prefetch_queue_depth=2,
    )
    with pipe:
        encoded = fn.external_source(
            source=iter(batches), batch=True, no_copy=True, dtype=types.UINT8, ndim=1
        )
        device = "mixed" if suite.on_gpu else "cpu"
        pipe.set_outputs(
            fn.decoders.image(
                encoded, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True, **hints
            )
        )
    begin = time.perf_counter()  # includes the decoder's start-up, as the fill does
    pipe.build()
    for _ in batches:
        pipe.run()
    wait(suite)
    return len(jpegs) / (time.perf_counter() - begin)


def gather_alone(suite: Suite) -> None:
    """Measure the gather by itself, both codecs, with augmentation sampled once."""
    from pipeline.decode.codec import Codec, allocate, write
    from pipeline.gather.augment import draw
    from pipeline.gather.params import InputFormat, gather_params
    from pipeline.gather.select import gather

    num, batch, side, out_px = (4096, 256, 256, 224) if suite.on_gpu else (8, 4, 40, 32)
    dtype = torch.bfloat16 if suite.on_gpu else torch.float32
    ids = torch.arange(num, device=suite.device)
    crops = torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8, device=suite.device)
    params = draw(AugmentConfig(), 0, 0, ids[:batch])
    turn = params.rotation_rad
    rows = torch.stack((turn.cos(), -turn.sin(), turn.sin(), turn.cos()), -1).view(-1, 2, 2)
    shift = torch.full((batch, 2, 1), (side - out_px) / 2, dtype=rows.dtype, device=suite.device)
    A_cache_from_input = torch.cat((rows, shift), -1)
    form = InputFormat(size_px=out_px, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=dtype)
    copied = [row.p50 for row in suite.rows if row.variant == "device copy"]
    for codec in Codec:
        pixels = allocate(num, side, codec, suite.device)
        write(pixels, ids, crops)
        how = gather_params(A_cache_from_input, params, out_px)
        # Other samples in every call: the GPU's cache would hold one batch.
        indices = [(torch.randperm(num, device=suite.device)[:batch],) for _ in range(16)]
        seconds = measured(suite, lambda index, p=pixels, h=how: gather(p, index, h, form), indices)
        moved = batch * (pixels.nbytes // num + 3 * out_px**2 * dtype.itemsize)
        name = f"gather {codec.value}"
        bandwidth = seconds.rate(moved / 1e9)
        suite.note(name, "batches", "images/s", seconds.rate(batch), b=batch)
        suite.note(name, "bandwidth", "GB/s", bandwidth, b=batch)
        if copied:
            suite.note(name, "of the copy's bandwidth", "%", 100 * bandwidth.p50 / copied[0])


def data_share_of_a_step(suite: Suite) -> None:
    """Measure order, sampling, labels and gather together, as a fraction of a ResNet-50 step."""
    from model.regressor.config import Head, RegressorConfig
    from model.regressor.net import HandRegressor
    from pipeline.loader import Loader

    config = config_of(suite)
    name = "resnet50" if suite.on_gpu else "resnet10t"
    settings = RegressorConfig(backbone=name, pretrained=False, head=Head.joints)
    with Loader(config, device=suite.device) as loader:
        batches = iter(loader)
        data = measured(suite, lambda: next(batches))
        rate = data.rate(config.batch_size)
        suite.note("loader, resident", "batches with labels", "images/s", rate, b=config.batch_size)
        model = HandRegressor(settings, input_px=config.input_px, mano=None).to(suite.device)
        step = functools.partial(train_on, suite, model, optimizer_of(model), next(batches))
        trained = measured(suite, step)
    suite.note(f"eager step {name}", "training", "images/s", trained.rate(config.batch_size))
    suite.note("loader, resident", "of a step", "%", 100 * data.p50 / trained.p50, step=name)


def capacity_beside_vit_large(suite: Suite) -> None:
    """Hold 400 k frames of 256 px and train a ViT-L on batches of them."""
    import timm

    from pipeline.decode.codec import Codec, allocate
    from pipeline.gather.augment import identity
    from pipeline.gather.params import InputFormat, gather_params
    from pipeline.gather.select import gather

    num, side, out_px, batch, name = (
        (IMAGES_OF_A_LARGE_SET, 256, 224, 64, "vit_large_patch14_dinov2")
        if suite.on_gpu
        else (64, 32, 32, 2, "vit_tiny_patch16_224")
    )
    model = timm.create_model(name, num_classes=63, img_size=out_px).to(suite.device)
    optimizer = optimizer_of(model)
    pixels = allocate(num, side, Codec.rgb, suite.device)
    dtype = torch.bfloat16 if suite.on_gpu else torch.float32
    form = InputFormat(size_px=out_px, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=dtype)
    A = torch.eye(2, 3, dtype=torch.float64, device=suite.device).expand(batch, 2, 3)
    how = gather_params(A, identity(batch, suite.device), out_px)

    def step() -> None:
        index = torch.randint(num, (batch,), device=suite.device)
        image = gather(pixels, index, how, form)
        with torch.autocast(suite.device.type, torch.bfloat16, enabled=suite.on_gpu):
            loss = model(image).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = measured(suite, step)
    words = {"frames": num, "cache_gb": round(pixels.nbytes / 1e9, 1)}
    variant = f"{name} beside {num:,} frames"
    suite.note(variant, "training", "images/s", seconds.rate(batch), **words)
    if suite.on_gpu:
        peak = torch.cuda.max_memory_allocated() / 1e9
        suite.note(variant, "peak memory", "GB", peak, **words)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of training."""
    return torch.optim.AdamW(model.parameters(), fused=True)


def train_on(
    suite: Suite, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch
) -> None:
    """Take one eager step: forward, backward, update."""
    from model.prediction import hands_of
    from train.step.step import predict

    dtype = torch.bfloat16 if suite.on_gpu else torch.float32
    joints = hands_of(predict(model, batch, dtype)).joints_3d
    torch.autograd.backward(joints.square().mean())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def wait(suite: Suite) -> None:
    """Wait for the device."""
    if suite.on_gpu:
        torch.cuda.synchronize()
