"""``python -m train run``: build the parts from the configuration and start the loop."""

import functools
import json
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model.mean_pose import MeanPose
from model.network import Network
from model.plain import to_plain
from model.pretrained import CONFIG_FILE, fitting_tensors
from pipeline.app.files import replace_file, require_ours
from pipeline.app.lock import locked
from pipeline.app.words import say
from pipeline.loader import Loader, require_known_order
from pipeline.order.parts import content_of, joint_sets_of
from train.build import build_model, label_groups, required_mano
from train.config import RunConfig
from train.device.device import choose_device
from train.device.distributed import (
    Ranks,
    all_gather,
    is_first_rank,
    joined_ranks,
    local_device,
    most_of,
    shared,
    with_shared_statistics,
)
from train.evaluate.validate import (
    score_baselines,
    shared_with_training,
    validation_pipeline,
)
from train.loop import Run, train
from train.state.checkpoint import (
    NotWrittenError,
    RunFacts,
    has_checkpoints,
    mean_of,
    new_run_id,
    require_same,
    restore,
)
from train.state.load import mano_of_run
from train.state.mean_pose import measure_mean_pose
from train.state.resume import continue_from, require_here, with_absolute_paths
from train.state.weights import FOLDER as WEIGHTS
from train.state.weights import weights_folder
from train.step.batch_size import resolve_batch_size
from train.step.optim import require_known
from train.step.peak import measure_need
from train.step.stages import require_trainable, resolve_stages, stage_at
from train.step.step import TrainState, build_state
from train.watch.log import NoLog, RunLog
from train.watch.manifest import manifest

LOCK: Final = "run.lock"
"""In the folder of a run while it trains."""
MANIFEST: Final = "manifest.json"
WRITTEN: Final = (MANIFEST, "log.jsonl", "checkpoints", WEIGHTS, "tensorboard", "pictures")
"""What a run writes into its folder."""


def main(config: RunConfig) -> int:
    """Train a model on a store.

    Writes a run folder: checkpoints/, weights/, manifest.json, log.jsonl, tensorboard/, pictures/.
    SIGINT, SIGTERM, SIGHUP and SIGUSR1 write a checkpoint and end the run. The same command with
    the same run_dir continues where the last whole checkpoint stands, after a signal or a kill; so
    does resume=RUN alone.
    Exit code 1: the last checkpoint could not be written.

    Example:
        python -m train run experiment=quickstart store=build/freihand.zarr mano=build/mano
    """
    config = with_absolute_paths(config)
    resumed = config.resume
    run_dir = resumed or config.run_dir
    is_there = resumed is None or Path(resumed).is_dir()
    with ExitStack() as stack:
        if run_dir is not None and is_there and is_first_rank():
            stack.enter_context(_alone_in(Path(run_dir)))
            _require_ours(Path(run_dir))
        config, payload = continue_from(config, say)
        if resumed is not None:  # else the paths are those of the command
            require_here(config, resumed)
        device = local_device(choose_device(config.device))
        if config.threads:
            torch.set_num_threads(config.threads)
        ranks = stack.enter_context(joined_ranks(device))
        if config.graph and ranks.world > 1:
            raise ValueError(
                f"graph=true is for one process, got {ranks.world} ranks; leave it out"
            )
        if config.debug and ranks.world > 1:
            raise ValueError(
                f"debug=true is for one process, got {ranks.world} ranks; start it without torchrun"
            )
        steps = all_gather(None if payload is None else int(payload["step"]), ranks)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the ranks found checkpoints of different steps ({steps}): run_dir must be one "
                "folder that all of them see"
            )
        if payload is not None and not any(one.epochs for one in config.stages.values()):
            end = sum(one.steps for one in config.stages.values()) or config.steps
            has_weights = (Path(config.run_dir or "") / WEIGHTS / CONFIG_FILE).is_file()
            if int(payload["step"]) >= end and has_weights:
                if ranks.is_first:
                    say(_nothing_to_do(config, int(payload["step"]), end))
                return 0
        return _run(config, payload, device, ranks, stack)


def _alone_in(run_dir: Path) -> AbstractContextManager[None]:
    """Keep other runs out of a run's folder: the slower one would put back older checkpoints."""
    return locked(
        run_dir / LOCK,
        f"another run trains in {run_dir}",
        instead="choose another run_dir",
        say=say,
    )


def _require_ours(run_dir: Path) -> None:
    """Refuse a folder in which a new run would replace what it does not know.

    Raises:
        FileExistsError: If there are files of another origin, or weights without checkpoints.
    """
    if has_checkpoints(run_dir):
        return
    require_ours(run_dir, "run_dir", WRITTEN, MANIFEST, b'"run_id"')
    if (run_dir / WEIGHTS / CONFIG_FILE).is_file():
        raise FileExistsError(
            f"run_dir={str(run_dir)!r} holds the weights of a run whose checkpoints are gone, and "
            "they would be replaced; choose another run_dir"
        )


def _nothing_to_do(config: RunConfig, step: int, end: int) -> str:
    """Say that a run has no steps left, and what trains it further."""
    where = f"{config.run_dir} is at step {step} of {end}: nothing to do"
    if config.stages:
        return f"{where}; its stages are done, a new run with init={config.run_dir} goes on from it"
    return f"{where}; python -m train run resume={config.run_dir} steps=N trains on to a larger N"


def _run(
    config: RunConfig,
    payload: dict[str, Any] | None,
    device: torch.device,
    ranks: Ranks,
    stack: ExitStack,
) -> int:
    torch.manual_seed(config.pipeline.seed)
    name = f"runs/{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    run_dir = Path(shared(config.run_dir or name, ranks))
    if config.run_dir is None and ranks.is_first:
        stack.enter_context(_alone_in(run_dir))
    if payload is None:
        mano = required_mano(config.model, config.mano)
    else:
        mano = mano_of_run(config.model, None, config.mano)
    joint_sets = joint_sets_of(config.pipeline)
    fresh = payload is None and config.init is None
    model = build_model(config, mano, joint_sets, load_weights=fresh).to(device)
    require_known(model, config.optim)

    found = ""
    if config.auto_batch_size and payload is None:
        config, found = resolve_batch_size(config, model, ranks)
    store_sha256 = content_of(config.pipeline)
    mano_sha256 = mano.sha256 if mano and config.model.needs_mano else ""
    if payload is not None:  # now, not after the long fill
        require_known_order(payload["loader"])
        require_same(payload, model, store_sha256=store_sha256, mano_sha256=mano_sha256)
    initial, begun = dict[str, Tensor](), ""
    if config.init is not None and payload is None:
        initial, begun = _initial(model, config.init)
    groups = label_groups(config.model.family)
    open_loader = functools.partial(
        Loader, device=device, rank=ranks.rank, world=ranks.world, groups=groups
    )
    need = measure_need(model, config, world=ranks.world)
    if config.sync_bn:  # not before: what was measured above waits for no other rank
        model = with_shared_statistics(model, ranks)
    loader = stack.enter_context(open_loader(config.pipeline, model_bytes=need.bytes))
    stages = resolve_stages(config, loader.steps_per_epoch)
    for one in stages:  # now, not when its turn comes
        loader.check(one.pipeline)
        require_trainable(model, one, ranks)
    mean_pose = measure_mean_pose(loader, model, ranks) if payload is None else mean_of(payload)
    model.start_from(mean_pose)
    model.load_state_dict(initial, strict=False)
    resumed_at = None if payload is None else int(payload["step"])
    done = resumed_at or 0
    stage = stage_at(stages, max(0, done - 1))  # the next one, if it is its turn, begins in train
    state = build_state(
        model, config, stage.pipeline.batch_size // ranks.world, ranks, loader.objects
    )
    state.accumulate = most_of(need.accumulate, ranks)
    facts = RunFacts(
        run_id=shared(new_run_id(), ranks) if payload is None else payload["run_id"],
        config=to_plain(config),
        mean_pose=mean_pose,
        store_sha256=store_sha256,
        mano_sha256=mano_sha256,
    )
    if payload is not None:
        restore(state, payload)
        loader.change(stage.pipeline)
        loader.load_state_dict(payload["loader"])
        del payload  # as large as the state
    validation, baselines = None, dict[str, float]()
    if config.validation.split is not None:
        held_out = validation_pipeline(config)
        beside = need.bytes + loader.held_bytes
        validation = stack.enter_context(open_loader(held_out, training=False, model_bytes=beside))
        baselines = score_baselines(model, mean_pose, validation, config.validation, ranks)

    if ranks.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
        record = {"run_id": facts.run_id}
        record |= manifest(facts.config, loader.content_sha256, mano.sha256 if mano else "")
        text = json.dumps(record, indent=2) + "\n"
        replace_file(run_dir / MANIFEST, text.encode())
    with RunLog(run_dir, stages[-1].end, state.step) if ranks.is_first else NoLog() as log:
        if resumed_at is not None and resumed_at >= stages[-1].end:
            log.say(_nothing_to_do(config, resumed_at, stages[-1].end))
        log.say(_summary(state, loader, device, mean_pose, run_dir) + begun)
        if found:
            log.say(found)
        if state.accumulate > config.accumulate:
            log.say(
                f"out of memory before: accumulate={state.accumulate} from step {state.step} on"
            )
        for warning in [] if validation is None else shared_with_training(loader, validation):
            log.say(f"warning: {warning}")
        if baselines:
            named = (f"{value:.2f} ({name.replace('_', ' ')})" for name, value in baselines.items())
            log.say(f"to beat: validation {config.validation.metric} " + ", ".join(named))
        try:
            finished = train(
                state,
                Run(
                    config=config,
                    stages=stages,
                    loader=loader,
                    validation=validation,
                    baselines={
                        f"validation/{config.validation.metric}_{name}": value
                        for name, value in baselines.items()
                    },
                    facts=facts,
                    folder=run_dir,
                    log=log,
                ),
            )
        except NotWrittenError as error:
            log.say(str(error))
            return 1
    return 0 if finished else 130


def _initial(model: Network, init: str) -> tuple[dict[str, Tensor], str]:
    """Return the weights of another run that fit, and what is taken in words.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are of another network.
    """
    taken = fitting_tensors(model, weights_folder(init, "init"))
    fresh = sorted(model.state_dict().keys() - taken.keys())
    missing = [name for name in fresh if name.startswith("backbone.")]
    if missing:
        raise ValueError(
            f"init={init!r} lacks {len(missing)} tensors of the backbone (first: {missing[0]}), "
            "which would stay random; give the model.backbone and model.readout of that run"
        )
    news = f"; new: {', '.join(fresh[:3])}{' ...' if len(fresh) > 3 else ''}" if fresh else ""
    return taken, f"; {len(taken)} of {len(taken) + len(fresh)} tensors from {init}{news}"


def _summary(
    state: TrainState, loader: Loader, device: torch.device, mean_pose: MeanPose, run_dir: Path
) -> str:
    parameters = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    from_joints = state.model.mano is not None and mean_pose.beta is None
    return (
        f"run {run_dir}: {loader.num_samples} samples, {mean_pose.num_hands} hands, "
        f"{parameters / 1e6:.1f} M parameters on {device}, step {state.step}"
        + ("; no MANO labels: learned from joints alone" if from_joints else "")
    )
