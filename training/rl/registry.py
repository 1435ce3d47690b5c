"""Find methods by name, and make recipes from data. A method is a module, imported when it is asked for."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from waver.engines import plugins
from waver.training.rl import methods as package
from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Method
from waver.training.rl.recipe import Recipe


def names() -> tuple[str, ...]:
    """Return all methods that come with Waver: the modules of `waver.training.rl.methods`."""
    return tuple(module.name for module in pkgutil.iter_modules(package.__path__))


def plugged() -> tuple[str, ...]:
    """Return the plug-in modules that are methods.

    Raises:
        PluginError: a plug-in cannot be imported.
    """
    return tuple(name for name in plugins.loaded() if _is_method(plugins.import_plugin(name)))


def load(name: str, **parameters: Any) -> Method:
    """Return the method of that name with these parameters.

    Its module has a class `Parameters` (a `Strict` model) and a function `method(parameters) -> Method`. A name with a
    dot is a module of yours, such as `lab.surprise`.

    Raises:
        RecipeError: there is no such method, or it has no such parameter.
    """
    module = _module(name)
    try:
        method: Method = module.method(module.Parameters(**parameters))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(f"{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return method


def describe(name: str) -> str:
    """Describe a method for a list: its name, paper and summary, and its settings with their defaults."""
    method = load(name)
    parameters = _module(name).Parameters
    settings = [f"{key}={field.default}" for key, field in parameters.model_fields.items()]
    return "\n".join(
        [
            f"{name} ({method.paper})",
            f"  {method.summary}",
            f"  settings: {', '.join(settings) or 'none'}",
        ]
    )


def listing() -> str:
    """Describe every method: those that come with Waver, and those of plug-ins.

    Raises:
        PluginError: a plug-in cannot be imported.
    """
    return "\n\n".join(describe(name) for name in (*names(), *plugged()))


def _module(name: str) -> Any:
    """Import the module of a method.

    Raises:
        RecipeError: there is none, or it is no method.
    """
    own = name in names()
    if not own and "." not in name and name not in plugins.loaded():
        raise RecipeError(f"there is no method {name!r}; there are {', '.join(names()) or 'none yet'}")
    try:
        module = import_module(f"{package.__name__}.{name}" if own else name)
    except ModuleNotFoundError as error:
        raise RecipeError(f"the method {name} cannot be imported: {error}") from error
    if not _is_method(module):
        raise RecipeError(f"the module {name} is no method: it needs a class Parameters and a function method")
    return module


def _is_method(module: Any) -> bool:
    return isinstance(getattr(module, "Parameters", None), type) and callable(getattr(module, "method", None))


def make_recipe(base: str = "grpo", methods: Sequence[str | Mapping[str, Any]] = (), **settings: Any) -> Recipe:
    """Return a recipe from data: `make_recipe("dapo", ["earl", {"name": "steer", "smallest": 0.5}], kl=1e-3)`.

    Raises:
        RecipeError: what `load` or `Recipe` refuse.
    """
    loaded = []
    for item in methods:
        parameters = {"name": item} if isinstance(item, str) else dict(item)
        if not isinstance(parameters.get("name"), str):
            raise RecipeError(f"a method is a name, or a mapping with a `name` and parameters, not {item!r}")
        loaded.append(load(**parameters))
    return Recipe(base, loaded, **settings)
