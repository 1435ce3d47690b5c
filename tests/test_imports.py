"""No file imports another that imports it back, be it through others: neither at once, nor later, nor for types."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from itertools import groupby

import grimp


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle, each importing the next; none if there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()})) == {"b", "c"}


def test_files_of_one_package_import_each_other_in_one_direction() -> None:
    graph = grimp.build_graph("waver", cache_dir=None)
    modules = sorted(module for module in graph.modules if module.count(".") > 1)
    circles = []
    for package, own in groupby(modules, lambda module: ".".join(module.split(".")[:2])):
        files = set(own)
        imports = {module: graph.find_modules_directly_imported_by(module) & files for module in files}
        if found := circle(imports):
            circles.append(f"{package}: {' -> '.join(found)}")
    assert not circles
