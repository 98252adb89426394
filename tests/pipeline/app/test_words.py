import io

import pytest
from rich.console import Console

from pipeline.app.words import closest, nearest, say, sentence


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "runs/[bold]first[/bold] " + 300 * "x"
    say(text)
    assert capsys.readouterr().out == f"{text}\n"
    written = io.StringIO()
    say("3 images", Console(file=written, force_terminal=True, color_system="truecolor"))
    assert written.getvalue() == "3 images\n"


def test_the_name_that_was_meant_is_found() -> None:
    names = {"freihand": 1, "dexycb": 2}
    assert nearest("freihnad", names) == "did you mean 'freihand'?"
    assert nearest("xyz", names) == "choose from: freihand, dexycb"
    assert closest("dexicb", names) == "dexycb"
    assert closest("xyz", names) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\n  and two"), "one and two"),
        (ValueError(), "ValueError"),
        (OSError("no number"), "no number"),
        (OSError(28, "No space left on device"), "No space left on device; free space on that"),
        (FileNotFoundError(2, "No such file", "a b"), "No such file: 'a b'; check the path"),
        (PermissionError(13, "Denied", b"\xff"), r"Denied: '\udcff'; check the permissions"),
        (OSError(18, "Cross-device link", "a", None, "b"), "Cross-device link: 'a' -> 'b'"),
    ],
)
def test_an_error_is_one_line_with_path_and_fix(error: Exception, expected: str) -> None:
    assert sentence(error).startswith(expected)
