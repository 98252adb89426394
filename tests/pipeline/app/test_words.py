import io

import pytest
from rich.console import Console

from pipeline.app.words import closest, nearest, say


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
