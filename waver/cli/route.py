"""Run `waver route`: teach a router kinds of requests, and ask it which kind a text is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waver.cli.endings import importing, in_sentences

if TYPE_CHECKING:
    from waver.training.adaptation.learn_route import Source

EMBEDDER = "all-MiniLM-L6-v2"
route = typer.Typer(no_args_is_help=True, help="Sort requests into kinds that are learned from examples.")
Embedder = Annotated[str, typer.Option(help="The sentence embedder: a configured name, or a folder.")]


@route.command("learn")
def learn(
    examples: Annotated[Path, typer.Argument(help="JSONL: `text` and `kind`.")],
    out: Annotated[Path, typer.Option(help="Folder of the router; one that is there learns the new kinds besides.")],
    test: Annotated[
        Path | None, typer.Option(help="Examples to measure by, of new and of earlier kinds; they are not learned.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps for new kinds.")] = 80,
    base_steps: Annotated[int, typer.Option(min=1, help="Steps for the kinds of the first session.")] = 250,
    suppression: Annotated[float, typer.Option(min=0.0, help="How quiet new weights are on earlier kinds.")] = 1.0,
    separation: Annotated[float, typer.Option(min=0.0, help="How differently they read new kinds.")] = 0.001,
    mixup: Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability of mixing examples.")] = 0.0,
    embedder: Embedder = EMBEDDER,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Teach a router kinds of requests.

    The first file should have some dozens of examples of each kind. Later files bring new kinds, of which five examples
    each will do; of earlier kinds only the mean is kept and seen again (Mamba-FSCIL, arXiv 2407.06136). With --test
    the router is compared with the nearest mean and a linear probe. Needs the extras `retrieval` and `train`.

        waver route learn kinds.jsonl --out routers/mine

        waver route learn more.jsonl --out routers/mine --test held_out.jsonl
    """
    with importing("train"):
        import torch

        from waver.training.adaptation.fscil import Teaching
        from waver.training.adaptation.learn_route import learn as work
    torch.set_num_threads(threads)
    how = Teaching(base_steps=base_steps, steps=steps, suppression=suppression, separation=separation, mixup=mixup)
    from waver.retrieval.base import RetrievalError

    with in_sentences(ValueError, OSError, RetrievalError):
        work(examples, out, _source(embedder), how, test, seed)


@route.command("say")
def say(
    router: Annotated[Path, typer.Argument(help="Folder of a router.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; from standard input, one a line, if none.")] = None,
) -> None:
    """Print which kind each text is, as a line of JSON: the kind, all probabilities, and their entropy (0 to 1).

    waver route say routers/mine "Where is my parcel?"
    """
    import json
    import sys
    from dataclasses import asdict

    from waver.engines.router import Router, as_maps, texts_of
    from waver.retrieval.base import RetrievalError

    given = texts or [line.strip() for line in sys.stdin if line.strip()]
    with in_sentences(ValueError, OSError, RetrievalError):
        if not given:
            raise ValueError("there is no text to sort")
        made = Router.load(router)
        source = _source(made.record.embedder)
        if reason := made.misfit(source.name, source.fingerprint):
            raise ValueError(reason)
        for text, choice in zip(given, made(as_maps(source.embed(texts_of(given)))), strict=True):
            typer.echo(json.dumps({"text": text, **asdict(choice)}, ensure_ascii=False))


@route.command("list")
def listed(router: Annotated[Path, typer.Argument(help="Folder of a router.")]) -> None:
    """Print the kinds that a router knows, a line for each."""
    from waver.engines.router import Router

    with in_sentences(ValueError, OSError):
        record = Router.load(router).record
        for place, kind in enumerate(record.kinds):
            typer.echo(f"{kind}\t{'first session' if place < record.base else 'added'}")


def _source(name: str) -> Source:
    """Load an embedder.

    Raises:
        RetrievalError: it cannot be loaded.
    """
    from waver.retrieval.embedder import Embedder
    from waver.training.adaptation.learn_route import Source

    made = Embedder(name)
    return Source(made.name, made.fingerprint, made.embed)
