"""Make the options of a command from the fields of dataclasses and pydantic models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, get_args, get_type_hints

import typer
from pydantic import BaseModel

from waver.options import Option


def config_option(words: str) -> Any:
    """Return the option that names a configuration file."""
    return typer.Option("--config", "-c", envvar="WAVER_CONFIG", help=words, show_default="the bundled pair")


def filled(**forms: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace parameters of a command by options for the fields of a dataclass.

    `@filled(run=RlRun)` over `def rl(out: Path, run: RlRun)` gives `rl` an option for every field of `RlRun` that is
    annotated with an `Option`. Fields without one keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        described = {name: _described(form) for name, form in forms.items()}
        parameters: list[Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            own = described.get(parameter.name)
            parameters += [parameter] if own is None else [_option(*each) for each in own.values()]

        @wraps(command)
        def run(**given: Any) -> None:
            made = {}
            for name, own in described.items():
                values = {key: _value(field, option, given.pop(key)) for key, (field, _, option) in own.items()}
                made[name] = forms[name](**values)
            command(**given, **made)

        return _typed(run, parameters)

    return decorate


def overriding(model: type[BaseModel], names: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `given` of a command by options for fields of a model, each None unless set.

    The command gets a dictionary of what was given. Help shows the model's descriptions and defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            parameters += [parameter] if parameter.name != "given" else [_override(model, name) for name in names]

        @wraps(command)
        def run(**values: Any) -> None:
            given = {name: value for name in names if (value := values.pop(name)) is not None}
            command(**values, given=given)

        return _typed(run, parameters)

    return decorate


Described = tuple[Field[Any], Any, Option]
"""A field, its type, and its description."""


def _described(form: type) -> dict[str, Described]:
    hints = get_type_hints(form, include_extras=True)
    found = {}
    for field in fields(form):
        hint = hints[field.name]
        option = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Option)), None)
        if option is not None:
            found[field.name] = field, get_args(hint)[0], option
    return found


def _option(field: Field[Any], kind: Any, option: Option) -> Parameter:
    flags = option.flags or ((_flag(field.name),) if kind is bool else ())
    default = Parameter.empty if field.default is MISSING else field.default
    if get_args(kind)[1:] == (...,):  # any number of values: the option is repeated
        kind, default = list[get_args(kind)[0]] | None, None  # type: ignore[misc]
    shown: Any = option.shown or True
    if option.read is not None:  # the default is a value already, and is not read
        kind, default, shown = str | None, None, option.shown or str(default)
    made = typer.Option(
        *flags, help=option.help, min=option.least, max=option.most, envvar=option.variable, show_default=shown
    )
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made])


def _override(model: type[BaseModel], name: str) -> Parameter:
    field = model.model_fields[name]
    flags = (_flag(name),) if field.annotation is bool else ()
    shown = False if field.annotation is bool else str(field.default).removesuffix(".0")
    made = typer.Option(*flags, help=field.description, show_default=shown)
    kind: Any = field.annotation
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, made])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(field: Field[Any], option: Option, given: Any) -> Any:
    """Return the value of a field from its option, or the field's default."""
    if isinstance(given, list):
        return tuple(given)
    if given is None:
        return field.default
    if option.read is None:
        return given
    try:
        return option.read(given)
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _typed(run: Callable[..., None], parameters: Sequence[Parameter]) -> Callable[..., None]:
    """Set the signature that typer reads."""
    run.__signature__ = inspect.Signature([p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def pairs(given: Sequence[str] | None, complaint: str, hint: str | None = None) -> list[tuple[str, str]]:
    """Split texts of the form KEY=VALUE.

    Raises:
        typer.BadParameter: one of them has no key or no sign; `complaint` says so.
    """
    found = [entry.partition("=") for entry in given or []]
    if any(not key or not sign for key, sign, _ in found):
        raise typer.BadParameter(complaint, param_hint=hint)
    return [(key, value) for key, _, value in found]
