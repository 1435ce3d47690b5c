"""Find transforms by name among this package's files and plug-in modules, and make them from plain data."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter, ValidationError

from waver.engines import plugins
from waver.engines.transforms.base import Transform, Truncation


def transform_classes() -> dict[str, type[Transform]]:
    """Find all transforms, by name."""
    return _found(plugins.loaded())


def from_data(data: Any) -> Transform:
    """Make a transform from plain data, such as `{"name": "top_h", "alpha": 0.5}`.

    Raises:
        ValueError: no such transform or parameter, a wrong type, or a value out of range.
    """
    try:
        made: Transform = _adapter(plugins.loaded()).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"transform{f' {where}' if where else ''}: {first['msg']}") from None
    return made


@cache
def _found(modules: tuple[str, ...]) -> dict[str, type[Transform]]:
    classes = plugins.subclasses(Transform, "waver.engines.transforms", modules)
    found: dict[str, type[Transform]] = {}
    for each in classes:
        name = plugins.name_of(each, found)
        if issubclass(each, Truncation) and each.crop.__func__ is Truncation.crop.__func__:  # type: ignore[attr-defined]
            raise plugins.PluginError(f"the truncation {name!r} in {each.__module__} has no method 'crop'")
        found[name] = each
    return found


@cache
def _adapter(modules: tuple[str, ...]) -> TypeAdapter[Any]:
    kinds: Any = Union[tuple(_found(modules).values())]  # noqa: UP007
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[kinds, Field(discriminator="name")])
    return adapter
