"""Run `waver inspect`: look into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing


def inspect_collapse(
    model: Annotated[str, typer.Argument(help="A vision-language model: a folder, or a name.")],
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of pictures; about a hundred will do.", show_default="32 drawn ones"),
    ] = None,
) -> None:
    """Find the layer of a vision-language model before which `entropy_prune` should drop image tokens.

    It is where the matrix entropy of all of a picture's tokens falls most, among the first third of the layers
    (EntropyPrune, arXiv 2602.17196).

        waver inspect collapse models/vision
    """
    from waver.training.adaptation.views import find_images
    from waver.training.inspect.collapse import inspect_collapse as work

    try:
        layer, entropies = work(model, find_images(images) if images is not None else [])
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    for number, entropy in enumerate(entropies):
        typer.echo(f"behind layer {number}: {entropy:.4f}")
    typer.echo(f'It falls most before layer {layer}: {{"name": "entropy_prune", "layer": {layer}}}')


def inspect_attention(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder, or a name.")],
    text: Annotated[str | None, typer.Option(help="The text to read.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the text, in place of --text.")] = None,
    out: Annotated[Path, typer.Option(help="The picture; its numbers are beside it as JSON.")] = Path("attention.png"),
) -> None:
    """Draw how widely each attention head of a model looks on a text.

    A head's value is the mean entropy of its rows as a part of the largest that they could have: near 0 it looks at
    single places, near 1 everywhere alike (Entropy-Guided Attention, arXiv 2501.03489).

        waver inspect attention models/large --text "The mayor of Talvek is Orla."
    """
    if (text is None) == (file is None):
        typer.echo("Give the text: --text or --file, one of them.", err=True)
        raise typer.Exit(1)
    with importing("train"):
        import matplotlib  # noqa: F401
    from waver.training.inspect.attention import inspect_attention as work
    from waver.training.inspect.attention import summary

    try:
        found = work(model, file.read_text(encoding="utf-8") if file is not None else str(text), out)
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    for line in summary(found):
        typer.echo(line)
    typer.echo(f"The picture is in {out}.")
