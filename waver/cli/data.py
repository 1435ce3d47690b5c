"""Run `waver data`: look into data to train on, and choose from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import filled
from waver.training.selection.epiplexity.options import EpiplexityRun
from waver.training.selection.instructions.options import QuantileRun, RepresentRun

data = typer.Typer(no_args_is_help=True, help="Look into data to train on, and choose from it.")
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@data.command()
@filled(run=EpiplexityRun)
def epiplexity(
    files: Annotated[list[Path], typer.Argument(help="JSONL as for `waver tune`, or any other file as one text.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; a stopped run there goes on.")],
    run: EpiplexityRun,
    threads: Threads = 1,
) -> None:
    """Rank corpora, and orders of their tokens, by the structure that a small model can learn from them.

    S counts the bits of structure, H those of noise (arXiv 2601.03220). Random bytes have much H and no S, a constant
    has neither, useful text has much S. Each corpus trains the same small model on as many tokens, once; S is what
    coding that training costs. Of a `prompt` with its `completion` only the second is coded.

        waver data epiplexity manual.txt chats.jsonl --out structure --seeds 3

        waver data epiplexity games.jsonl --out orders --order joint --order swapped --requential
    """
    with in_sentences(ValueError, OSError):
        from waver.training.selection.epiplexity.run import measure

        measure(files, run, out, threads)


Query = Annotated[Path, typer.Option(help="JSONL of the target task, with answers; a few examples are enough.")]
Work = Annotated[
    Path | None, typer.Option(help="Folder of the vectors, which later runs use again.", show_default="OUT.work")
]
POOL = "JSONL as for `waver tune`, any number of lines."


@data.command()
@filled(run=RepresentRun)
def select(
    pool: Annotated[Path, typer.Argument(help=POOL)],
    query: Query,
    budget: Annotated[int, typer.Option(min=1, help="Examples to choose.")],
    out: Annotated[Path, typer.Option(help="JSONL to write, as TRL's SFTTrainer reads it, nearest first.")],
    run: RepresentRun,
    selector: Annotated[
        str,
        typer.Option(help="round_robin, doubly_greedy, uot, uot_softmax, knn_uniform, knn_kde, or random."),
    ] = "round_robin",
    work: Work = None,
    threads: Threads = 1,
) -> None:
    """Choose the examples of a pool that are nearest to a target task (arXiv 2602.14696).

    What is near is one choice, --representation: `less` compares gradients and is the one whose nearness predicts the
    loss; `rds` and `embed` are cheaper. How the near ones are taken is another, --selector. Compare with
    `--selector random`, and with the model as it is. `less` needs the extra `train`, `embed` the extra `retrieval`.

        waver data select pool.jsonl --query gsm8k.jsonl --budget 1000 --out chosen.jsonl --model models/large
    """
    with in_sentences(ValueError, OSError):
        from waver.training.selection.instructions.run import select as work_on

        folder = work or out.with_name(out.name + ".work")
        work_on(pool, query, budget, selector, run, out, folder, _embedder, threads)


@data.command()
@filled(run=RepresentRun, plan=QuantileRun)
def quantiles(
    pool: Annotated[Path, typer.Argument(help=POOL)],
    query: Query,
    out: Annotated[Path, typer.Option(help="Folder for the report; a stopped run there goes on.")],
    run: RepresentRun,
    plan: QuantileRun,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Other examples of the task, to measure the loss on.", show_default="the queries"),
    ] = None,
    work: Work = None,
    threads: Threads = 1,
) -> None:
    """Tell whether a similarity predicts the loss, before trusting it: fine-tune on slices of the ordered pool.

    The loss should rise from the nearest slice to the farthest: Spearman's correlation near 1. Needs the extra `train`.

        waver data quantiles pool.jsonl --query gsm8k.jsonl --held-out gsm8k-test.jsonl --out quantiles
    """
    with in_sentences(ValueError, OSError):
        from waver.training.selection.instructions.quantiles import measure

        folder = work or out.with_name(out.name + ".work")
        measure(pool, query, held_out, run, plan, out, folder, _embedder, threads)


def _embedder(name: str) -> tuple[Callable[[list[str], str], Any], int]:
    """Return what embeds texts by the retrieval's embedder, and its dimensions.

    Raises:
        ValueError: it cannot be loaded; the message says why.
    """
    from waver.retrieval.base import Unavailable

    try:
        from waver.retrieval.embedder import Embedder

        found = Embedder(name)
        dimension = found.dimension
    except Unavailable as error:
        raise ValueError(str(error)) from None

    def embed(texts: list[str], role: str) -> Any:
        return found.embed(texts, role="query" if role == "query" else "document")

    return embed, dimension
