"""Where the CLI's code lies."""

from pathlib import Path

from pipeline.app import cli


def test_no_folder_beside_the_cli_is_taken_for_a_group_of_options() -> None:
    """Hydra would: predict's model=FILE.onnx was refused, as the project has a folder model."""
    folder = Path(cli.__file__).parent
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]
