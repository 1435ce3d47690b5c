"""Run `waver train rl`: reinforcement learning on questions with verifiable answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing
from waver.cli.fill import filled
from waver.training.options import RlRun


def list_methods(wanted: bool) -> None:
    """Print every training method and exit."""
    if not wanted:
        return
    with importing("train"):
        from waver.training.rl.registry import listing
    try:
        typer.echo(listing())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit


@filled(run=RlRun)
def train_rl(
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: RlRun,
    recipe: Annotated[Path | None, typer.Option(help="YAML: `base`, `methods` and settings.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="`grpo` (the default), `dapo`, `dr_grpo`, `gspo` or `rloo`; goes over that of --recipe."),
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="A method; repeatable.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the base, METHOD.KEY=VALUE of a method; repeatable.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    _: Annotated[
        bool,
        typer.Option("--list", callback=list_methods, is_eager=True, help="List the methods with their settings."),
    ] = False,
) -> None:
    """Train a model by reinforcement learning on questions whose answers can be checked.

    The trained model is in OUT/model, ready for `waver serve`, beside metrics.jsonl, curves.png and TensorBoard's
    runs. Needs the extra `train`. docs/training-methods.md tells the methods apart.

    Example: `waver train rl --out run --base dapo --set clip_high=0.25`
    """
    with importing("train"):
        from waver.training.rl.run import parse_settings, train
    try:
        train(replace(run, recipe=parse_settings(base, method or [], setting or [], recipe)), out, threads)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
