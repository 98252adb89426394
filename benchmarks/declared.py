"""Documentation tables generated from code: the store's arrays and flags, the loss terms."""

from collections.abc import Iterable, Sequence

from pipeline.app.cli import field_docs
from pipeline.store.schema import (
    FLAG_MEANINGS,
    FLAGS,
    IMAGE_INDEX,
    LABELS,
    OBJECT_ARRAYS,
    OPTIONAL_LABELS,
    PICTURES,
    ArraySpec,
)
from train.losses.config import PRESETS, TERMS, LossConfig


def store_table() -> str:
    """Return every array of a store except those of its objects, in Markdown."""
    jpegs = "JPEGs end to end; shards of whole rows, inner chunks of 256 KiB, no codec inside"
    rows = "row numbers of a split, in the dataset's official order"
    lines = [("`image/bytes`", "uint8, one axis", "byte", jpegs)]
    lines += [_array("image", spec) for spec in IMAGE_INDEX]
    lines += [_array("labels", spec) for spec in LABELS]
    for spec in OPTIONAL_LABELS:
        *array, meaning = _array("labels", spec)
        lines.append((array[0], array[1], array[2], f"{meaning}; optional"))
    for spec in PICTURES:
        name, kind, unit, meaning = _array("labels", spec)
        lines.append((name, f"{kind} [height, width]", unit, f"{meaning}; optional"))
    lines.append(("`splits/<name>`", "int32, one axis", "row", rows))
    return _table(("array", "type, shape per row", "unit, frame", "meaning"), lines)


def object_table() -> str:
    """Return the arrays of ``objects/<name>``, in Markdown."""
    lines = [
        (f"`{name}`", f"{dtype}{_shape(shape)}", meaning)
        for name, dtype, shape, meaning in OBJECT_ARRAYS
    ]
    return _table(("array", "type, shape", "meaning"), lines)


def flags_table() -> str:
    """Return the bits of ``labels/quality``, in Markdown."""
    lines = [(f"`{name}`", str(bit), FLAG_MEANINGS[name]) for name, bit in FLAGS.items()]
    return _table(("flag", "bit", "meaning"), lines)


def loss_table() -> str:
    """Return the loss terms and their weights in each preset, in Markdown."""
    docs = field_docs(LossConfig)
    lines = [
        (f"`{term}`", docs[term], *(f"{PRESETS[p].get(term, 0.0):g}" for p in PRESETS))
        for term in TERMS
    ]
    return _table(("term", "what it measures", *(preset.name for preset in PRESETS)), lines)


def _array(group: str, spec: ArraySpec) -> tuple[str, str, str, str]:
    return f"`{group}/{spec.name}`", f"{spec.dtype}{_shape(spec.shape)}", spec.unit, spec.meaning


def _shape(shape: tuple[int, ...]) -> str:
    return f" [{', '.join(str(side or 'any') for side in shape)}]" if shape else ""


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([_cell(cell) for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    """Format a table cell on one line, with ``|`` escaped."""
    return " ".join(text.split()).replace("|", "\\|")
