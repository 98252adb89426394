"""``import-mano``: convert the user's licensed MANO download to two plain ``.npz`` files.

No code in the download is executed, nothing is unpacked to disk, and chumpy is not needed. MANO is
never distributed with Handloom and never downloaded by it.
"""

import hashlib
import io
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from model.mano.files import (
    INTERHAND_REGRESSOR_FILE,
    MANO_ENV,
    MANO_FILES,
    left_is_unfixed,
    with_other_x,
)
from pipeline.app.files import replace_file
from pipeline.app.words import say
from pipeline.pickles import MAX_BYTES
from pipeline.zips import open_zip, read_member
from preprocess.config import ImportManoConfig
from preprocess.mano.arrays import (
    Arrays,
    check_interhand_regressor,
    mano_from_npz,
    mano_from_pickle,
)

MAX_LEVELS: Final = 4
"""Maximum folder depth below ``path`` that is searched."""
PUBLISHED_MD5: Final = {
    "MANO_RIGHT.pkl": "fd5a9d35f914987cf1cc04ffe338caa1",
    "MANO_LEFT.pkl": "11aeaca8631aa20db964d4eba491e885",
}
"""MD5 hashes of the MANO v1.2 pickles."""
_PICKLES: Final = tuple(PUBLISHED_MD5)
_WANTED: Final = (*_PICKLES, *MANO_FILES, INTERHAND_REGRESSOR_FILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """Result of an import: what was found and written."""

    out: Path
    done: dict[str, str]
    """Per file: written, replaced or already there."""
    sources: list[str]
    left_was_unfixed: bool
    md5: dict[str, str]
    """MD5 of each pickle that was read."""
    has_regressor: bool
    """InterHand2.6M's regressor is in ``out``, from this run or an earlier one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """One of the wanted files in the download."""

    name: str
    where: str
    read: Callable[[], bytes]


def main(config: ImportManoConfig) -> int:
    """Convert your MANO download to plain .npz files, once; then pass mano=OUT.

    Get mano_v1_2.zip from https://mano.is.tue.mpg.de (registration, non-commercial licence) and
    pass it as path=, or the folder it was unpacked to. No code in it is executed. InterHand2.6M's
    J_regressor_mano_ih26m.npy is copied too if present.

    Example: python -m preprocess import-mano path=~/Downloads/mano_v1_2.zip out=/data/mano
    """
    report = import_mano(config)
    say(report_text(report))
    return 0


def import_mano(config: ImportManoConfig) -> ImportReport:
    """Find the two models, check them, and write them to ``out``.

    Raises:
        ValueError: If a model is missing, present twice, damaged or not a MANO model, or ``out``
            holds different files with these names.
        OSError: If a file cannot be read or written.
    """
    path, out = Path(config.path).expanduser(), Path(config.out).expanduser()
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is not a folder; choose another path")
    md5: dict[str, str] = {}
    with ExitStack() as stack:
        found = _pick(list(_search(path, out, stack)), path)
        right, left = (_load(found[name], md5) for name in MANO_FILES)
        regressor = found.get(INTERHAND_REGRESSOR_FILE)
        extra = None if regressor is None else regressor.read()
        if regressor is not None and extra is not None:
            check_interhand_regressor(extra, name=regressor.where)
    unfixed = left_is_unfixed(left["shapedirs"], right["shapedirs"])
    left["shapedirs_fixed"] = with_other_x(left["shapedirs"]) if unfixed else left["shapedirs"]
    contents = dict(zip(MANO_FILES, map(_npz, (right, left)), strict=True))
    if extra is not None:
        contents[INTERHAND_REGRESSOR_FILE] = extra
    done = _write_all(out, contents, overwrite=config.overwrite)
    return ImportReport(
        out=out,
        done=done,
        sources=[one.where for one in found.values()],
        left_was_unfixed=unfixed,
        md5=md5,
        has_regressor=(out / INTERHAND_REGRESSOR_FILE).is_file(),
    )


# --- search ---------------------------------------------------------------------------------------


def _search(path: Path, out: Path, stack: ExitStack) -> Iterator[_Found]:
    """Yield every wanted file in the download, skipping ``out`` if it lies below it."""
    if path.name in _WANTED and path.is_file():
        raise ValueError(f"path={str(path)!r} is one file of MANO; name the folder with both hands")
    if path.is_dir():
        for folder, subfolders, files in os.walk(path):
            here = Path(folder)
            if len(here.relative_to(path).parts) >= MAX_LEVELS:
                subfolders.clear()
            subfolders[:] = sorted(s for s in subfolders if not _same(here / s, out))
            for name in sorted(set(files).intersection(_WANTED)):
                file = here / name
                if not file.is_file():  # reading a pipe would block forever
                    continue
                yield _Found(name=name, where=str(file), read=partial(_read, file))
    elif path.is_file():
        archive = stack.enter_context(open_zip(path, name=f"path={str(path)!r}"))
        for member in archive.infolist():
            name = PurePosixPath(member.filename).name
            if name in _WANTED and not member.is_dir():
                where = f"{path}: {ascii(member.filename)[1:-1]}"
                read = partial(read_member, archive, member, name=where, max_bytes=MAX_BYTES)
                yield _Found(name=name, where=where, read=read)
    else:
        raise ValueError(
            f"path={str(path)!r} does not exist; expected the download mano_v1_2.zip or its folder"
        )


def _same(folder: Path, out: Path) -> bool:
    return out.is_dir() and folder.samefile(out)


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file} is larger than {MAX_BYTES} bytes, MANO's files are about 4 MB")
    return data


def _pick(found: list[_Found], path: Path) -> dict[str, _Found]:
    """Return one source per output file: the pickle if there is one, else the ``.npz``."""
    picked = {}
    missing = []
    for target, names in (
        *((npz, (pickle, npz)) for pickle, npz in zip(_PICKLES, MANO_FILES, strict=True)),
        (INTERHAND_REGRESSOR_FILE, (INTERHAND_REGRESSOR_FILE,)),
    ):
        for name in names:
            same = [one for one in found if one.name == name]
            if len(same) > 1:
                raise ValueError(
                    f"path={str(path)!r} holds {name} {len(same)} times ({same[0].where} and "
                    f"{same[1].where}); name the folder of one"
                )
            if same:
                picked[target] = same[0]
                break
        else:
            if target in MANO_FILES:
                missing.append(names[0])
    if missing:
        raise ValueError(
            f"path={str(path)!r} lacks {' and '.join(missing)}; expected the download "
            "mano_v1_2.zip from https://mano.is.tue.mpg.de, or the folder it unpacks to"
        )
    return picked


def _load(found: _Found, md5: dict[str, str]) -> Arrays:
    data = found.read()
    if found.name not in PUBLISHED_MD5:
        return mano_from_npz(data, name=found.where)
    md5[found.name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return mano_from_pickle(data, name=found.where)


# --- writing --------------------------------------------------------------------------------------


def _npz(arrays: Arrays) -> bytes:
    """Serialise arrays to ``.npz`` bytes; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _write_all(out: Path, contents: dict[str, bytes], *, overwrite: bool) -> dict[str, str]:
    """Write each file atomically; return what was done with each."""
    done = {}
    for name, content in contents.items():
        done[name] = "written"
        if (out / name).exists():
            same = (out / name).stat().st_size == len(content) and _read(out / name) == content
            done[name] = "already there" if same else "replaced"
    other = [name for name, what in done.items() if what == "replaced"]
    if other and not overwrite:
        raise ValueError(
            f"out={str(out)!r} holds another {' and '.join(other)}; pass overwrite=true to "
            "replace, or choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if done[name] != "already there":
            replace_file(out / name, content)
    return done


# --- report ---------------------------------------------------------------------------------------


def report_text(report: ImportReport) -> str:
    """Format the report as text: files, shape basis, md5, licence, next step."""
    lines = [
        f"{report.out}: {', '.join(f'{name} {what}' for name, what in report.done.items())}",
        *(f"  from {source}" for source in report.sources),
    ]
    if report.left_was_unfixed:
        lines.append(
            "  left hand: shape basis as published, x axis of the wrong sign (smplx issue 48); "
            "kept as shapedirs, fixed as shapedirs_fixed; Handloom fixes it on loading"
        )
    else:
        lines.append("  left hand: shape basis already fixed (smplx issue 48)")
    for name, found in report.md5.items():
        known = PUBLISHED_MD5[name]
        if found == known:
            lines.append(f"  {name}: md5 as published, MANO v1.2")
        else:
            lines.append(
                f"  warning: {name} has md5 {found}, MANO v1.2 has {known}; "
                "is it another version, converted, or damaged?"
            )
    if not report.has_regressor:
        lines.append(
            f"  {INTERHAND_REGRESSOR_FILE}: not found; InterHand2.6M's joints need it in the "
            "same folder"
        )
    folder = shlex.quote(str(report.out.absolute()))
    return "\n".join(
        [
            *lines,
            "  licence: MANO's own, non-commercial; the files are yours to use, not to pass on",
            f"  next: pass mano={folder}, or once: export {MANO_ENV}={folder}",
        ]
    )
