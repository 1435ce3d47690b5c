"""Find policies, gates, transforms and training methods by their modules: Waver's own, and those of plug-ins.

A plug-in is a module named in the configuration (`modules`), in the environment (`WAVER_MODULES`, a JSON list, which
processes that are started later inherit) or by an installed package, as an entry point of the group `waver.modules`.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel

VARIABLE = "WAVER_MODULES"
GROUP = "waver.modules"

T = TypeVar("T")


class PluginError(ValueError):
    """A plug-in cannot be used. The message is one sentence for the person who starts the server."""


def load(modules: Iterable[str]) -> None:
    """Load plug-in modules beside those that are loaded already, here and in processes that this one starts later.

    Raises:
        PluginError: one of them cannot be imported.
    """
    wanted = tuple(dict.fromkeys((*loaded(), *modules)))
    for name in wanted:
        import_plugin(name)
    os.environ[VARIABLE] = json.dumps(wanted)


def loaded() -> tuple[str, ...]:
    """List the plug-in modules of this process, in the order in which they were named.

    Raises:
        PluginError: the environment's list cannot be read.
    """
    given = os.environ.get(VARIABLE, "")
    return _installed() if not given else tuple(dict.fromkeys((*_installed(), *_listed(given))))


def subclasses(base: type[T], package: str, modules: Iterable[str]) -> list[type[T]]:
    """Find every subclass of `base` with a name of its own that the files of a package, or of plug-ins, define.

    Raises:
        PluginError: a module cannot be imported.
    """
    return [
        each
        for module in (*_files(package), *modules)
        for each in vars(import_plugin(module)).values()
        if inspect.isclass(each) and issubclass(each, base) and each.__module__ == module and _names(each)
    ]


def name_of(plugin: type[Any], taken: Mapping[str, object]) -> str:
    """Return the name of a class, and check that it is new and that its fields are described.

    Raises:
        PluginError: the definition lacks something.
    """
    name, where = _names(plugin), f"in {plugin.__module__}"
    if name in taken:
        raise PluginError(f"{plugin.__name__} {where} has the name {name!r}, which is taken")
    if not (plugin.__doc__ or "").strip():
        raise PluginError(f"{name!r} {where} needs a docstring: its first line is shown as the summary")
    fields = plugin.model_fields if issubclass(plugin, BaseModel) else {}
    for key, field in fields.items():
        if key != "name" and (field.is_required() or not field.description):
            raise PluginError(f"the parameter {key!r} of {name!r} {where} needs a default and a description")
    return name


def summary(plugin: type[Any]) -> str:
    """Return the first line of a class's docstring."""
    return (plugin.__doc__ or "").strip().splitlines()[0]


def _names(plugin: type[Any]) -> str:
    """Return the name of a class: its own attribute, or the default of a field `name` that is a `Literal` of one value;
    empty for a base class."""
    if not issubclass(plugin, BaseModel):
        own = getattr(plugin, "name", "")
        return own if isinstance(own, str) else ""
    field = plugin.model_fields.get("name")
    values: tuple[Any, ...] = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return str(values[0]) if field is not None and values == (field.default,) else ""


def import_plugin(name: str) -> Any:
    """Import a plug-in module.

    Raises:
        PluginError: it cannot be imported.
    """
    try:
        return import_module(name)
    except Exception as error:
        raise PluginError(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _files(package: str) -> list[str]:
    """List a package's modules and those in the packages inside it."""
    whole = import_module(package)
    return [each.name for each in pkgutil.walk_packages(whole.__path__, f"{package}.") if not each.ispkg]


def _listed(given: str) -> tuple[str, ...]:
    try:
        names = json.loads(given)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PluginError(f'{VARIABLE} should be a JSON list of module names, such as ["lab.policy"]')
    return tuple(names)


@cache
def _installed() -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.value for each in entry_points(group=GROUP)))
