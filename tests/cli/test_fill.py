"""Options are the fields of the data that they fill: same names, same defaults, same bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from waver.cli.fill import filled, overriding, pairs
from waver.options import Option


def read_level(given: str) -> float:
    if given == "low":
        return 0.0
    raise ValueError(f"--level is low, not {given!r}")


@dataclass(frozen=True)
class Oven:
    heat: Annotated[int, Option("Degrees.", least=20, most=300)] = 180
    fan: Annotated[bool, Option("Blow.")] = False
    trays: Annotated[tuple[str, ...], Option("What goes in; repeatable.")] = ()
    level: Annotated[float, Option("How high.", read=read_level)] = 1.0
    name: Annotated[str | None, Option("Of the oven.", flags=("--name", "-n"), shown="the kitchen's")] = None
    colour: str = "white"
    """No option."""


class Door(BaseModel):
    width: float = Field(0.9, gt=0, description="Metres.")
    locked: bool = Field(False, description="Lock it.")
    material: str = "oak"


@pytest.fixture
def seen() -> list[Any]:
    return []


@pytest.fixture
def app(seen: list[Any]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @filled(oven=Oven)
    def bake(what: str, oven: Oven) -> None:
        """Bake."""
        seen.append((what, oven))

    @app.command()
    @overriding(Door, ("width", "locked"))
    def shut(given: dict[str, Any]) -> None:
        """Shut."""
        seen.append(given)

    return app


def run(app: typer.Typer, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def test_defaults_are_those_of_the_data(app: typer.Typer, seen: list[Any]) -> None:
    run(app, "bake", "bread")
    run(app, "shut")
    assert seen == [("bread", Oven()), {}]


def test_what_is_given_is_filled_in(app: typer.Typer, seen: list[Any]) -> None:
    run(app, "bake", "bread", "--heat", "220", "--fan", "--trays", "a", "--trays", "b", "--level", "low", "-n", "x")
    run(app, "shut", "--width", "1.5", "--locked")
    assert seen == [("bread", Oven(220, True, ("a", "b"), 0.0, "x")), {"width": 1.5, "locked": True}]


def test_what_does_not_fit_is_said(app: typer.Typer, seen: list[Any]) -> None:
    assert "--heat': Input should be less than or equal to 300" in run(app, "bake", "bread", "--heat", "400", code=2)
    assert "--level is low, not 'high'" in run(app, "bake", "bread", "--level", "high", code=1)
    assert "No such option" in run(app, "bake", "bread", "--colour", "red", code=2)
    assert not seen


def test_help_shows_words_and_defaults(app: typer.Typer) -> None:
    shown = run(app, "bake", "--help")
    assert all(words in shown for words in ("Degrees.", "default: 180", "the kitchen's", "--fan"))
    assert "--no-fan" not in shown
    assert "--colour" not in shown
    assert all(words in run(app, "shut", "--help") for words in ("Metres.", "default: (0.9)", "Lock it."))


def test_pairs() -> None:
    assert pairs(["a=1", "b=c=d", "e="], "no") == [("a", "1"), ("b", "c=d"), ("e", "")]
    assert pairs(None, "no") == []
    for wrong in ("a", "=a"):
        with pytest.raises(typer.BadParameter, match="no"):
            pairs([wrong], "no")
