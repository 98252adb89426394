"""The report page: every fact is in it, no name can break it, and it is the same every time."""

import dataclasses
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.store.reader import open_store
from pipeline.store.schema import FLAG_MEANINGS, FLAGS, StoreAttributes
from preprocess.builder.report import facts as report_facts
from preprocess.builder.report.facts import (
    RESIDUAL_EDGES_MM,
    Coverage,
    ObjectFacts,
    RejectedRow,
    StoreFacts,
    rejected_rows,
    residual_counts,
    store_facts,
)
from preprocess.builder.report.page import PAGE_FILE, byte_text, page, share
from preprocess.builder.report.text import BuildReport, counts_line, report_text
from preprocess.labels.quality import flag_counts
from tests.pipeline.hand_store import hand_store
from tests.pipeline.stores import relist, toy_attributes
from tests.preprocess.objects.object_store import BOX, object_store

NASTY = '<script>alert("1")</script>\'"><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}'
NO_VALUES = residual_counts(np.array([]), np.empty((0, 2)))
VOID = {"meta", "br"}


class Parsed(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [a for name, a in self.tags if name == tag and wanted.items() <= a.items()]


def attributes(**changes: Any) -> StoreAttributes:
    counts = dict.fromkeys(FLAGS, 0) | {"no_label": 3, "image_truncated": 1}
    base = toy_attributes(
        4000, 1024, flags=FLAGS, flag_counts=counts, official_counts={"train": 4000, "test": 50},
        found_counts={"train": 4000, "test": 48, "mine": 7}, content_sha256="c" * 64,
        mano_sha256="m" * 64, licence="research only", citation="Someone, 2020", finished=True,
        tables={"sequence": ["s"], "camera": ["c0", "c1"], "object": ["box"]},
        extra={"jpeg_processes": {"baseline": 3999}},
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def facts() -> StoreFacts:
    return StoreFacts(
        image_bytes=1_234_567,
        num_clean=3996,
        coverage=(
            Coverage(name="has_mano", meaning="theta is valid", rows=1000, right=900, left=200),
        ),
        objects=(
            ObjectFacts(
                name="box", diameter_m=0.1234, num_symmetries=4, num_vertices=8, num_rows=2000
            ),
        ),
    )


def rejected(row: int, flag: str, **changes: Any) -> RejectedRow:
    base = RejectedRow(
        row=row, official_idx=10 * row, image=f"rgb/{row}.jpg", sequence="s", camera="c1",
        frame_idx=row + 100, flag=flag, reason="",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def render(**changes: Any) -> str:
    options: dict[str, Any] = {
        "attributes": attributes(),
        "facts": facts(),
        "residuals": NO_VALUES,
        "flag_rows": {},
        "notes": {},
    } | changes
    return page(options.pop("attributes"), **options)


# --- residuals ------------------------------------------------------------------------------------


def test_residuals_are_counted_as_a_loop_counts_them() -> None:
    rng = np.random.default_rng(0)
    check = 10.0 ** rng.uniform(-8, 1, 500)
    check[::7] = np.nan
    refit = 10.0 ** rng.uniform(-8, 1, (500, 2))
    refit[:, 0], refit[::5] = 0.0, np.nan
    refit[3, 1] = RESIDUAL_EDGES_MM[4] / 1000  # an edge belongs to the bin above it
    found = residual_counts(check, refit)

    def expected(values: np.ndarray) -> list[int]:
        counts = [0] * (len(RESIDUAL_EDGES_MM) + 1)
        for value in values.ravel().tolist():
            if value == value and not (values is refit and value == 0):
                counts[sum(value >= edge / 1000 for edge in RESIDUAL_EDGES_MM)] += 1
        return counts

    assert found.vertices.tolist() == expected(check)
    assert found.refit.tolist() == expected(refit)
    assert found.vertices.dtype == found.refit.dtype == np.int64
    assert found.vertices[0] > 0
    assert found.vertices[-1] > 0


def test_edges_are_powers_of_ten_and_three_steps_between() -> None:
    assert RESIDUAL_EDGES_MM[::4] == (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
    np.testing.assert_allclose(
        np.diff(np.log10(RESIDUAL_EDGES_MM)), np.full(len(RESIDUAL_EDGES_MM) - 1, 0.25), atol=1e-3
    )


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    check, refit = rng.exponential(1e-4, 90), rng.exponential(1e-3, (90, 2))
    parts = residual_counts(check[:31], refit[:31]) + residual_counts(check[31:], refit[31:])
    whole = residual_counts(check, refit)
    assert parts.vertices.tolist() == whole.vertices.tolist()
    assert parts.refit.tolist() == whole.refit.tolist()
    other = dataclasses.replace(whole, edges_mm=(1.0,))
    with pytest.raises(ValueError, match="different edges"):
        _ = whole + other


def test_bars_stand_over_their_values_on_the_axis() -> None:
    check = np.array([5e-7] + [3e-4] * 4 + [np.nan])  # 0.0005 mm, and 0.3 mm four times
    parsed = Parsed(render(residuals=residual_counts(check, np.zeros((6, 2))), max_residual_m=3e-4))
    bars = parsed.of("rect")
    assert len(bars) == 2
    small, large = ({key: float(value or 0) for key, value in bar.items()} for bar in bars)
    assert small["height"] * 4 == large["height"]
    assert small["y"] + small["height"] == large["y"] + large["height"]  # they share a floor
    ticks = [
        float(a["x"] or 0)
        for tag, a in parsed.tags
        if tag == "text" and "class" not in a and "x" in a
    ]
    at = dict(zip((0.001, 0.01, 0.1, 1.0, 10.0, 100.0), ticks, strict=False))
    assert small["x"] + small["width"] <= at[0.001]
    place = at[0.1] + (at[1.0] - at[0.1]) * math.log10(0.3 / 0.1)
    assert large["x"] <= place <= large["x"] + large["width"]
    [limit] = parsed.of("line", class_="limit")
    assert float(limit["x1"] or 0) == at[1.0]
    assert "5 rows; largest of all 0.3 mm" in parsed.text
    assert "Refitted left hands against the hand as shipped None in this store" in parsed.text


# --- the page -------------------------------------------------------------------------------------


def test_the_page_says_what_the_store_is() -> None:
    text = Parsed(render()).text
    for words in (
        "4,000 in 4 shards of 1,024",
        "1.2 MB (1,234,567 bytes), passthrough",
        "Joint set smplx",
        "m" * 64,
        "c" * 64,
        "python -m preprocess build-cache dataset=toy",
        "Licence research only",
        "Cite Someone, 2020",
        "99.9 % of the rows without a flag",
        "has_mano 1,000 25.0 % 900 200 theta is valid",
        "no_label 3 < 0.1 % No joint of either hand is annotated, in 3D or 2D.",
        "box 123.4 mm 4 8 2,000 50.0 %",
        "jpeg_processes baseline 3999",
    ):
        assert words in text, words


def test_splits_that_differ_are_marked_in_words() -> None:
    parsed = Parsed(render())
    assert "1 of 2 splits differ from the official count" in parsed.text
    assert "train 4,000 4,000 complete" in parsed.text
    assert "test 48 50 \u26a0 2 fewer" in parsed.text
    assert "mine 7 - no official count" in parsed.text
    assert len(parsed.of("tr", class_="differs")) == 1
    more = attributes(found_counts={"train": 4001}, official_counts={"train": 4000, "test": 9})
    text = Parsed(render(attributes=more)).text
    assert "train 4,001 4,000 \u26a0 1 more" in text
    assert "test 0 9 \u26a0 9 fewer" in text


def test_every_flag_has_a_meaning() -> None:
    assert FLAG_MEANINGS.keys() == FLAGS.keys()
    for meaning in FLAG_MEANINGS.values():
        assert re.fullmatch(r"[A-Z].*\.", meaning)


def test_nothing_is_loaded_and_nothing_runs() -> None:
    parsed = Parsed(render(flag_rows={"no_label": [rejected(1, "no_label")]}))
    names = {name for name, _ in parsed.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "base", "a", "form"})
    for _, found in parsed.tags:
        assert not any(key in ("src", "href") or key.startswith("on") for key in found)
    assert not re.search(r"url\(|@import|https?:", render())
    [policy] = [a for a in parsed.of("meta") if "http-equiv" in a]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_values_of_the_dataset_are_text_whatever_they_hold() -> None:
    plain, parsed = Parsed(full("x")), Parsed(full(NASTY))
    assert parsed.tags == plain.tags
    assert plain.text.count("x!") > 15
    assert parsed.text.count(NASTY + "!") == plain.text.count("x!")


def full(value: str) -> str:
    return render(**arguments(value))


def arguments(value: str) -> dict[str, Any]:
    """Return what makes a page with one value in every place that a dataset or a user fills."""
    value += "!"
    named = dataclasses.replace(
        facts(),
        objects=(dataclasses.replace(facts().objects[0], name=value),),
    )
    row = rejected(1, "no_label", image=value, sequence=value, camera=value, reason=value)
    return dict(  # noqa: C408 - reads as the call it becomes
        attributes=attributes(
            dataset=value, licence=value, citation=value, command=value, joint_set=value,
            found_counts={value: 1}, tables={value: [value]}, extra={value: value},
            flag_counts=dict.fromkeys(FLAGS, 1), image_encoding=value,
        ),
        facts=named,
        flag_rows={"no_label": [row]},
        residuals=NO_VALUES,
        notes={value: [value, {value: value}], "table": [{value: value}]},
    )  # fmt: skip


def test_names_that_utf8_has_no_place_for_are_spelled_out() -> None:
    odd = os.fsdecode(b"rgb/\xff\x00.jpg")
    text = render(flag_rows={"no_label": [rejected(1, "no_label", image=odd)]})
    assert "rgb/\\xdcff\\x00.jpg" in text
    text.encode("utf-8")


def test_notes_of_any_shape_are_shown() -> None:
    notes = {
        "counts": {"s0": 5, "deep": {"deeper": [1, 2, [3]]}},
        "table": [{"subject": "a", "frames": 1}, {"subject": "b", "frames": 2}],
        "mixed": [{"a": 1}, {"b": None}],
        "ratio": 0.123456789,
        "flag": True,
        "nothing": {},
        "none": [],
        "long": list(range(1000, 1500)),
    }
    parsed = Parsed(render(notes=notes, attributes=attributes(extra={"notes": notes, "k": 0.5})))
    assert "k 0.5" in parsed.text
    assert parsed.text.count("0.123457") == 1  # a store that keeps them does not show them twice
    for words in (
        "s0 5 deep deeper 1 2 3",
        "table subject frames a 1 b 2",
        "mixed a 1 b -",
        "ratio 0.123457 flag yes nothing none none none",
        "1199 and 300 more",
    ):
        assert words in parsed.text, words
    assert "1200" not in parsed.text


def test_warnings_of_the_source_stand_at_the_top() -> None:
    names = [f"s01/box_use_{i:02d}" for i in range(40)]
    missing = {"sequences of the protocols not in images": {"count": 40, "names": names}}
    notes = {"missing": missing, "warnings": ["40 of 339 sequences <b> are not in images"]}
    text = Parsed(render(notes=notes)).text
    assert text.index("40 of 339 sequences <b> are not in images") < text.index("Terms")
    assert "s01/box_use_39" in text


def test_flagged_rows_are_listed_with_the_total() -> None:
    few = [rejected(5, "image_truncated", reason="is cut off")]
    many = [rejected(row, "no_label") for row in range(3)]
    counts = dict.fromkeys(FLAGS, 0) | {"no_label": 2500, "image_truncated": 1}
    parsed = Parsed(
        render(
            attributes=attributes(flag_counts=counts),
            flag_rows={"image_truncated": few, "no_label": many},
        )
    )
    assert "image_truncated: 1 row Row" in parsed.text
    assert "5 50 rgb/5.jpg s c1 105 is cut off" in parsed.text
    assert "no_label: 2,500 rows, the first 3 listed" in parsed.text
    assert [("open" in a) for a in parsed.of("details")] == [True, False]


def test_the_page_is_the_same_in_every_process(tmp_path: Path) -> None:
    file = tmp_path / "arguments"
    file.write_bytes(pickle.dumps(arguments("x")))
    code = (
        "import pickle, sys; from preprocess.builder.report.page import page;"
        "options = pickle.load(open(sys.argv[1], 'rb'));"
        "sys.stdout.buffer.write(page(options.pop('attributes'), **options).encode())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        check=True,
        cwd=Path(__file__).parents[4],
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
    )
    assert elsewhere.stdout == full("x").encode()


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [
        (0, 10, "0"), (10, 10, "100 %"), (1, 3, "33.3 %"), (1, 581_968, "< 0.1 %"),
        (581_967, 581_968, "> 99.9 %"), (1, 1000, "0.1 %"), (999, 1000, "99.9 %"),
        (1, 2000, "< 0.1 %"), (1999, 2000, "> 99.9 %"),
    ],
)  # fmt: skip
def test_a_share_never_rounds_to_nothing_or_all(count: int, total: int, text: str) -> None:
    assert share(count, total) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999 bytes"), (1000, "1.0 kB (1,000 bytes)"),
        (51_234_567_890, "51.2 GB (51,234,567,890 bytes)"),
    ],
)  # fmt: skip
def test_bytes_are_readable_and_exact(count: int, text: str) -> None:
    assert byte_text(count) == text


# --- the facts ------------------------------------------------------------------------------------


def test_facts_are_those_of_a_loop_over_the_rows(tmp_path: Path) -> None:
    store = open_store(object_store(tmp_path / "s.zarr"))
    found = store_facts(store)
    assert found.image_bytes == sum(len(store.jpeg(row)) for row in range(store.num_rows))
    assert found.num_clean == sum(int(q) == 0 for q in store.label("quality"))
    by_name = {c.name: c for c in found.coverage}
    assert list(by_name) == [
        "sample_ok", "has_joints", "has_mano", "has_beta", "has_object", "has_contact", "has_world",
    ]  # fmt: skip
    for name, entry in by_name.items():
        mask = store.label(name)
        assert entry.rows == sum(bool(np.any(mask[row])) for row in range(store.num_rows))
        if mask.shape[1:] == (2,):
            assert (entry.right, entry.left) == (sum(mask[:, 0]), sum(mask[:, 1]))
        else:
            assert entry.right is entry.left is None
    [box, ball] = found.objects
    assert (box.name, box.num_vertices, box.num_symmetries) == ("box", 8, len(BOX.symmetries))
    assert box.diameter_m == pytest.approx(BOX.diameter_m)
    for i, listed in enumerate((box, ball)):
        assert listed.num_rows == sum(
            any(
                store.label("has_object")[row, slot] and store.label("object_id")[row, slot] == i
                for slot in range(10)
            )
            for row in range(store.num_rows)
        )
    assert 0 < box.num_rows < store.num_rows


def test_flagged_rows_are_found_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_facts, "MOST_ROWS", 3)
    quality = FLAGS["no_mano"]
    path = hand_store(tmp_path / "s.zarr", unreadable=(4,), quality=np.uint32(quality))
    store = open_store(path)
    # every row lacks MANO, so the flag says nothing of a row
    assert rejected_rows(store) == {}
    odd = np.array([FLAGS["no_label"] * (row % 2) + FLAGS["image_missing"] * (row == 4)
                    for row in range(12)], np.uint32)  # fmt: skip
    zarr.open_array(path / "labels" / "quality", mode="r+")[:] = odd
    relist(path)
    store = open_store(path)
    images = [f"rgb/{row}.jpg" for row in range(12)]
    found = rejected_rows(store, images, {4: "is missing", 1: "of another flag"})
    assert list(found) == ["image_missing", "no_label"]
    assert [r.row for r in found["no_label"]] == [1, 3, 5]
    assert [r.reason for r in found["no_label"]] == [""] * 3
    [missing] = found["image_missing"]
    assert missing == RejectedRow(
        row=4, official_idx=4, image="rgb/4.jpg", sequence="wave", camera="c0", frame_idx=4,
        flag="image_missing", reason="is missing",
    )  # fmt: skip
    assert rejected_rows(store)["image_missing"][0].image == ""


def test_zarr_does_not_mind_the_page_where_it_lies(tmp_path: Path) -> None:
    path = hand_store(tmp_path / "s.zarr")
    store = open_store(path)
    counted = dataclasses.replace(store.attributes, flag_counts=flag_counts(store.label("quality")))
    text = page(
        counted, facts=store_facts(store), residuals=NO_VALUES,
        flag_rows=rejected_rows(store), notes={},
    )  # fmt: skip
    before = store.label("quality").tolist()

    def walk() -> tuple[list[str], list[int]]:
        group = zarr.open_group(path, mode="r")
        names = sorted(name for name, _ in group.members(max_depth=None))
        return names, np.asarray(zarr.open_array(path / "labels" / "quality", mode="r")[:]).tolist()

    names, _ = walk()
    (path / PAGE_FILE).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert walk() == (names, before)
        assert open_store(path).label("quality").tolist() == before
    (path / "labels" / "report.html").write_text(text)  # in a group's folder it does
    with pytest.warns(UserWarning, match=r"report\.html"):
        walk()


# --- the text report ------------------------------------------------------------------------------


def build_report(**changes: Any) -> BuildReport:
    base = BuildReport(
        path=Path("s.zarr"), attributes=attributes(), image_bytes=1_000_000, seconds=3.0,
        shard_seconds=2.0, fresh_rows=4000, mano_used=True, max_residual_m=0.00001,
        max_refit_m=math.nan, object_rows={}, first_rows={name: [] for name in FLAGS},
        bad_images=[], report_page=Path("s.zarr") / PAGE_FILE,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_the_text_names_refit_objects_and_page() -> None:
    counts = dict.fromkeys(FLAGS, 0) | {"left_refit": 12}
    tables = {"object": ["can", "box", "bowl", "mug"]}
    text = report_text(
        build_report(
            attributes=attributes(flag_counts=counts, tables=tables),
            max_refit_m=0.0021,
            object_rows={"can": 5, "box": 70, "mug": 5},
        )
    )
    assert (
        "left hands: refitted within 2.1000 mm of the shipped model, 12 rows without beta" in text
    )
    assert "objects: 3 of 4 seen (most rows: box 70, can 5, mug 5)" in text
    assert f"page: {Path('s.zarr') / PAGE_FILE}" in text
    assert "shards written at 2000 frames/s" in text


def test_the_text_is_silent_about_what_is_not_there() -> None:
    text = report_text(build_report(attributes=attributes(tables={})))
    assert "left hands" not in text
    assert "objects" not in text


def test_a_resumed_build_counts_only_its_own_rows() -> None:
    assert "500 frames/s, 3000 rows were already written" in report_text(
        build_report(fresh_rows=1000)
    )
    assert "all shards were already written" in report_text(build_report(fresh_rows=0))


def test_the_text_ends_with_a_warning_for_counts_that_are_not_official() -> None:
    last = report_text(build_report()).splitlines()[-1]
    expected = "warning: 1 of 2 splits differ from the official counts: test has 48 of 50"
    assert last.strip() == expected
    several = attributes(found_counts={"train": 4001}, official_counts={"train": 4000, "test": 9})
    assert counts_line(several).endswith("train has 4,001 of 4,000, test has 0 of 9")
    complete = attributes(found_counts={"train": 4000, "mine": 7}, official_counts={"train": 4000})
    assert "warning" not in report_text(build_report(attributes=complete))


def test_the_text_ends_with_the_warnings_of_the_source() -> None:
    notes = {"warnings": ["2 of 9 sequences are not in images: a, b", "1 of 5 files was old"]}
    extra = attributes().extra | {"notes": notes}
    lines = report_text(build_report(attributes=attributes(extra=extra))).splitlines()
    assert [line.strip() for line in lines[-2:]] == [f"warning: {s}" for s in notes["warnings"]]
