"""Log lines: of JSON in a pipe, for people on a terminal, where nothing that a client sends can command it."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import structlog

from waver.server.log_text import TextRenderer, harmless, wants_colour
from waver.server.logs import configure_logs

REQUEST = {
    "event": "request",
    "level": "info",
    "method": "POST",
    "path": "/v1/chat/completions",
    "status": 200,
    "tokens": {"small": 40, "large": 9},
    "seconds": 0.4123,
    "request_id": "r1",
}


def plain(**record: Any) -> str:
    """Return a line without colours and its time of day."""
    when, line = TextRenderer(colour=False)(None, "info", dict(record)).split("  ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", when)
    return line


def test_a_request_is_one_short_line() -> None:
    assert plain(**REQUEST) == "200 POST /v1/chat/completions 0.41 s  tokens=small:40,large:9"
    assert plain(**REQUEST | {"status": 500}).endswith("request_id=r1"), "where something went wrong it can be found"


def test_an_event_shows_what_goes_with_it() -> None:
    assert plain(event="ready", level="info", engines=["small", "large"], seconds=1.23456) == (
        "ready  engines=small,large seconds=1.235"
    )
    assert plain(event="an engine died", level="error", engine="a", request_id="r") == (
        "error: an engine died  engine=a request_id=r"
    )
    assert plain(event="it broke", level="error", exception="Traceback\n  line") == "error: it broke\nTraceback\n  line"


def test_colours_tell_states_apart() -> None:
    shown = [TextRenderer(colour=True)(None, "info", REQUEST | {"status": status}) for status in (200, 404, 503)]
    assert [re.findall(r"\x1b\[3(\d)m", line) for line in shown] == [["2"], ["3"], ["1"]]
    assert wants_colour({"TERM": "xterm"})
    assert not wants_colour({"TERM": "xterm", "NO_COLOR": "1"})
    assert not wants_colour({"TERM": "dumb"})


def test_what_a_client_sends_cannot_command_the_terminal() -> None:
    path = "/v1/\x1b[2J\x07\u2028\n"
    line = plain(**REQUEST | {"path": path, "model": "\x9b31m"})
    assert line.isprintable()
    assert "\\x1b[2J\\x07\\u2028\\n" in line
    assert harmless("Grüße 桥") == "Grüße 桥"


@pytest.mark.parametrize(
    ("form", "terminal", "text"),
    [("auto", False, False), ("auto", True, True), ("text", False, True), ("json", True, False)],
)
def test_lines_are_for_people_on_a_terminal_and_json_in_a_pipe(
    form: Any, terminal: bool, text: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    configure_logs(form=form)
    structlog.get_logger("waver").info("ready", engines=["small"])
    line = capsys.readouterr().err
    if text:
        assert line.endswith("  ready  engines=small\n")
    else:
        assert json.loads(line).items() >= {"event": "ready", "level": "info"}.items()
