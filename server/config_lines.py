"""Find the line of a value in a configuration's file, and the flag or the variable that a value came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from waver.server.problems import Place, Problem

MERGE = "tag:yaml.org,2002:merge"


def line_of(root: yaml.Node | None, place: Place) -> int | None:
    """Return the line, from 1, of the deepest part of a place that a file has; None if it has none of it."""
    node, line = root, None
    for part in place:
        found = _child(node, part)
        if found is None:
            break
        line, node = found
    return line


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line on which an entry of a mapping or a list begins, and its value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line + 1, item
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if str(key.value) == str(part):
            return key.start_mark.line + 1, value
    for key, value in node.value:  # what stands in the mapping itself goes over what is merged into it
        if key.tag == MERGE:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if found := _child(merged, part):
                    return found
    return None


class Locator:
    """Finds out where the values of one configuration were given.

    Args:
        file: what it was read from. flags: what the command line said, as the configuration has it.
    """

    def __init__(self, file: Path, flags: Mapping[str, Any] | None = None) -> None:
        self._file, self._flags = file, flags or {}
        try:
            self._root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            self._root = None

    def locate(self, problem: Problem) -> Problem:
        """Add the source and the line to a problem that has none yet."""
        if problem.source is not None:
            return problem
        if (elsewhere := self._elsewhere(problem.place)) is not None:
            return replace(problem, source=elsewhere)
        return replace(problem, source=str(self._file), line=line_of(self._root, problem.place))

    def _elsewhere(self, place: Place) -> str | None:
        """Return the flag or the variable that a value came from, or None where it stands in the file."""
        given: Any = self._flags
        for part in place:
            given = given.get(part) if isinstance(given, Mapping) else None
        if given is not None and place:
            return f"--{place[-1]}".replace("_", "-")
        variable = "_".join(("WAVER", "__".join(map(str, place)))).upper()
        return next((name for name in os.environ if name.upper() == variable), None)
