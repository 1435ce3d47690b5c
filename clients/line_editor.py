"""Read lines from a terminal with editing, a history that is kept in a file, and completion of commands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

VARIABLE = "WAVER_CHAT_HISTORY"
LONGEST = 1000
"""Lines that the history keeps."""


def history_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file of the history: WAVER_CHAT_HISTORY (none if it is empty), else one below XDG_STATE_HOME."""
    if VARIABLE in environment:
        return Path(environment[VARIABLE]).expanduser() if environment[VARIABLE] else None
    state = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "waver" / "chat_history"


def _readline() -> Any:
    """Import the module that edits lines; None where Python was built without it. Not with this module: on some
    terminals its import alone writes to standard output."""
    try:
        return import_module("readline")
    except ImportError:
        return None


class LineEditor:
    """Lines typed by a person.

    Args:
        words: what the tabulator completes at the beginning of a line, or after a word of it.
        history: file of the lines of earlier sessions; None: they are not kept. A file that cannot be read or written
            is done without.
    """

    def __init__(self, words: Sequence[str], history: Path | None) -> None:
        self._words = words
        self._history = history
        self._readline = _readline()
        if self._readline is None:
            return
        self._readline.clear_history()
        self._readline.set_history_length(LONGEST)
        self._readline.set_completer(self._complete)
        self._readline.set_completer_delims("")
        libedit = "libedit" in (self._readline.__doc__ or "")
        self._readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        if history is not None:
            with suppress(OSError):
                self._readline.read_history_file(history)

    def read(self, prompt: str, bold: bool) -> str:
        """Return a line, whose continuations are those after a backslash at its end.

        Raises:
            EOFError: ctrl-D. KeyboardInterrupt: ctrl-C.
        """
        # Between \x01 and \x02 stands what takes no room on the line.
        shown = f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02" if bold and self._readline is not None else prompt
        line = input(shown)
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{input('… ')}"
        return line

    def save(self) -> None:
        """Write the history, for its owner alone to read."""
        if self._readline is None or self._history is None:
            return
        with suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            self._readline.write_history_file(self._history)
            self._history.chmod(0o600)

    def _complete(self, text: str, state: int) -> Any:
        found = [word for word in self._words if word.startswith(text)] if text.startswith("/") else []
        return found[state] if state < len(found) else None
