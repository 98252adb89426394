"""Write the golden store of the present format: python -m tests.pipeline.store.make_golden.

Once per format version, when it is fixed; ``test_golden_store`` reads it for as long as the version
is read. A tiny ARCTIC tree: two hands, an object of two parts, contact, a missing image.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from pipeline.store.reader import open_store
from pipeline.store.schema import FORMAT_VERSION, LABELS
from preprocess.builder.build import build
from preprocess.config import BuildConfig, OnBadImage
from tests.preprocess.datasets import write_mano
from tests.preprocess.sources.arctic.tree import Spec, write_arctic

FOLDER = Path(__file__).parent / "golden" / f"format_{FORMAT_VERSION}"
ROWS = (0, 7, 13)
"""Whose labels are kept beside the store, as plain JSON."""


def main() -> None:
    """Build the store, write down what is in it, forget where it was built."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        root, mano = Path(name) / "arctic", Path(name) / "mano"
        specs = (Spec(name="s01/box_use_01", num_frames=22, missing=(11,)),)
        write_arctic(root, write_mano(mano), specs, {"s01": 1})
        config = BuildConfig(
            dataset="arctic", root=str(root), out=str(FOLDER / "store.zarr"), mano=str(mano),
            workers=1, shard_rows=10, on_bad_image=OnBadImage.flag,
        )  # fmt: skip
        report = build(config)
        for path in (FOLDER / "store.zarr").rglob("*"):
            if path.suffix in (".json", ".html"):
                text = path.read_text().replace(str(FOLDER.absolute()), "/data")
                path.write_text(text.replace(name, "/data"))
    store = open_store(FOLDER / "store.zarr")
    facts = {
        "content_sha256": report.attributes.content_sha256,
        "num_rows": store.num_rows,
        "jpeg_bytes": [
            len(store.jpeg(row)) for row in range(store.num_rows) if store.label("sample_ok")[row]
        ],
        "labels": {
            spec.name: {
                str(row): np.asarray(store.label(spec.name)[row], np.float64).round(6).tolist()
                for row in ROWS
            }
            for spec in LABELS
            if spec.name != "contact_dist"
        },
    }
    (FOLDER / "facts.json").write_text(json.dumps(facts, indent=0))


if __name__ == "__main__":
    main()
