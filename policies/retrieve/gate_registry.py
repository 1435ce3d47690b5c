"""Gates by name: the classes of the package `gates` and of plug-in modules."""

from __future__ import annotations

from functools import cache

from waver.engines import plugins
from waver.policies.retrieve.gates.base import Gate


def gates() -> dict[str, type[Gate]]:
    """Find every gate by name; the controls, which compare nothing, come last.

    Raises:
        PluginError: one of them is not defined as it should be.
    """
    return _found(plugins.loaded())


@cache
def _found(modules: tuple[str, ...]) -> dict[str, type[Gate]]:
    found: dict[str, type[Gate]] = {}
    for each in plugins.subclasses(Gate, "waver.policies.retrieve.gates", modules):
        name = plugins.name_of(each, found)
        if each.decide is Gate.decide:
            raise plugins.PluginError(f"the gate {name!r} in {each.__module__} has no method 'decide'")
        found[name] = each
    return dict(sorted(found.items(), key=lambda item: (item[1].threshold is None, item[0])))
