"""The text report at the end of a build."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.store.schema import StoreAttributes
from preprocess.images.images import BadImage


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """Summary of a finished build."""

    path: Path
    attributes: StoreAttributes
    """Attributes as written, with counts by split and by flag and the content hash."""
    image_bytes: int
    seconds: float
    """Wall time, from opening the source to the finish marker."""
    shard_seconds: float
    """Wall time of reading, checking and writing shards only."""
    fresh_rows: int
    """Rows written by this run; the others were finished by an earlier one."""
    mano_used: bool
    max_residual_m: float
    """Largest distance between a decoded vertex and the official one; NaN if none was compared."""
    max_refit_m: float
    """Largest error of a refitted left hand; NaN if none was refitted."""
    object_rows: dict[str, int]
    """Number of rows with a pose, by object."""
    first_rows: dict[str, list[int]]
    """The first rows that carry each flag."""
    bad_images: list[BadImage]
    report_page: Path
    """Path of the HTML report, which has more detail."""

    @property
    def frames_per_s(self) -> float:
        """Return rows read, checked and written per second."""
        return self.fresh_rows / max(self.shard_seconds, 1e-9)


def report_text(report: BuildReport) -> str:
    """Format the report as text: counts, flags, MANO, objects, speed, licence, warnings."""
    a = report.attributes
    if not report.fresh_rows:
        speed = "all shards were already written"
    else:
        speed = f"shards written at {report.frames_per_s:.0f} frames/s"
        if before := a.num_rows - report.fresh_rows:
            speed += f", {before} rows were already written"
    head = (
        f"{report.path}: {a.dataset}, {a.num_rows} rows in {_num_shards(a)} shards, "
        f"{report.image_bytes / 1e6:.1f} MB of JPEG, {report.seconds:.1f} s, {speed}"
    )
    lines = [
        head,
        "",
        f"  {'split':<20} {'found':>10} {'official':>10}",
    ]
    for name in [*a.found_counts, *(n for n in a.official_counts if n not in a.found_counts)]:
        official = a.official_counts.get(name)
        lines.append(
            f"  {name:<20} {a.found_counts.get(name, 0):>10} "
            f"{'-' if official is None else official:>10}"
        )
    lines += ["", f"  {'flag':<20} {'rows':>10}  first rows"]
    for name, count in a.flag_counts.items():
        first = ", ".join(map(str, report.first_rows[name]))
        lines.append(f"  {name:<20} {count:>10}  {first}".rstrip())
    lines += ["", *_notes(report), "", f"  licence: {a.licence}", f"  cite: {a.citation}"]
    if warnings := _warnings(report):
        lines += ["", *(f"  {line}" for line in warnings)]
    return "\n".join(lines)


def _warnings(report: BuildReport) -> list[str]:
    notes = report.attributes.extra.get("notes", {})
    source = [f"warning: {sentence}" for sentence in notes.get("warnings", [])]
    lines = [bad_images_line(report), counts_line(report.attributes), *source]
    return [line for line in lines if line]


def counts_line(attributes: StoreAttributes) -> str:
    """Return one line that names the splits without their official count; empty if none."""
    found, official = attributes.found_counts, attributes.official_counts
    differ = [name for name, count in official.items() if found.get(name, 0) != count]
    if not differ:
        return ""
    shown = ", ".join(f"{name} has {found.get(name, 0):,} of {official[name]:,}" for name in differ)
    return (
        f"warning: {len(differ)} of {len(official)} splits differ from the official counts: {shown}"
    )


def bad_images_line(report: BuildReport) -> str:
    """Return one line that names the first unreadable images; empty if there are none."""
    if not report.bad_images:
        return ""
    shown = "; ".join(f"{bad.image} {bad.reason}" for bad in report.bad_images[:3])
    return (
        f"warning: {len(report.bad_images)} of {report.attributes.num_rows} images are kept as "
        f"rows without an image ({shown})"
    )


def _notes(report: BuildReport) -> list[str]:
    a = report.attributes
    processes = ", ".join(f"{n} {name}" for name, n in a.extra["jpeg_processes"].items())
    lines = [f"  images: {processes or 'none readable'}"]
    if not report.mano_used:
        lines.append(
            "  MANO: not used, has_mano is False in every row; pass mano=FOLDER or set "
            "HANDLOOM_MANO to store theta, beta and transl"
        )
    elif report.max_residual_m >= 0:
        lines.append(
            f"  MANO: {a.mano_sha256[:12]}, decoded vertices within "
            f"{1000 * report.max_residual_m:.4f} mm of the official ones"
        )
    else:
        lines.append(f"  MANO: {a.mano_sha256[:12]}, no official vertices to compare with")
    if report.max_refit_m >= 0:
        lines.append(
            f"  left hands: refitted within {1000 * report.max_refit_m:.4f} mm of the shipped "
            f"model, {a.flag_counts['left_refit']} rows without beta because of it"
        )
    if names := a.tables.get("object"):
        most = sorted(names, key=lambda name: (-report.object_rows.get(name, 0), name))
        shown = ", ".join(f"{name} {report.object_rows.get(name, 0)}" for name in most[:3])
        seen = sum(report.object_rows.get(name, 0) > 0 for name in names)
        lines.append(f"  objects: {seen} of {len(names)} seen (most rows: {shown})")
    lines.append(f"  content sha256: {a.content_sha256}")
    lines.append(f"  page: {report.report_page}")
    return lines


def _num_shards(attributes: StoreAttributes) -> int:
    return -(-attributes.num_rows // attributes.shard_rows)
