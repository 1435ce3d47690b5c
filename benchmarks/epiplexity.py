"""Rank texts of several kinds by epiplexity: a generated corpus, real English, shuffled bytes, noise, a constant.

The theory gives an order: a constant and noise have next to no structure (S) and differ in what is left over (H);
shuffled bytes keep only the frequencies of letters, so that they have little S; text has much. Which of two texts has
more is what the estimate is for. Every corpus has equally many bytes, cut from its beginning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import typer

from waver import job
from waver.benchmarks import report
from waver.benchmarks.locomo_data import load
from waver.training.pair.bundled import SPECS
from waver.training.pair.data import conversation, render
from waver.training.selection.epiplexity.options import EpiplexityRun
from waver.training.selection.epiplexity.run import measure

WORK = Path("data/bench/epiplexity")
SEED = 20260

app = report.command()


def bundled(size: int) -> bytes:
    """Return `size` bytes of conversations as the bundled large model learns them."""
    rng, mixture, parts, length = random.Random(f"epiplexity:{SEED}"), SPECS["large"].mixture, [], 0
    while length < size:
        text = "".join(piece for piece, _ in render(conversation(rng, mixture))) + "\n"
        parts.append(text)
        length += len(text.encode())
    return "".join(parts).encode()[:size]


def shuffled(text: bytes) -> bytes:
    """Return the same bytes in a random order."""
    return bytes(random.Random(SEED).sample(text, len(text)))


def dialogue(data: Path, size: int) -> bytes:
    """Return `size` bytes of LoCoMo's conversations between people, without its questions."""
    turns = (f"{turn.speaker}: {turn.text}\n" for each in load(data) for turn in each.turns)
    return "".join(turns).encode()[:size]


def corpora(size: int, locomo: Path | None) -> dict[str, bytes]:
    """Return the corpora by name, `size` bytes each."""
    manual = "\n\n".join(text for _, text in sorted(topics.items())).encode()[:size]
    own = bundled(size)
    found = {
        "bundled": own,
        "bundled, shuffled": shuffled(own),
        "manual": manual,
        "manual, shuffled": shuffled(manual),
        "noise": random.Random(SEED).randbytes(size),
        "constant": b"a" * size,
    }
    if locomo is not None:
        found["dialogue"] = dialogue(locomo, size)
    return found


def page(found: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    told, settings = found["report"], found["settings"]
    rows = [
        [row["corpus"], _spread(row, "s"), _spread(row, "h"), f"{row['loss_bits']:.3f}",
         f"{min(found['each'][row['corpus']]):,.0f} to {max(found['each'][row['corpus']]):,.0f}"]
        for row in told["rows"]
    ]  # fmt: skip
    return [
        "# Structure and noise of texts",
        f"S and H in bits of {told['tokens']:,} bytes each, {settings['seeds']} seeds (weights, order, what is held "
        f"out): mean and standard deviation, and the range of S over the seeds. Prequential estimate, a fresh Llama of "
        f"{settings['size']} in batches of {settings['batch']}. `bundled` are conversations as the bundled large "
        "model learns them, `manual` are the topics of Python's own reference (`pydoc`), `dialogue` LoCoMo's "
        "conversations, `shuffled` the same bytes in random order.",
        report.table(("corpus", "S", "H", "bits a byte, held out", "S by seed"), rows),
        "Every pair of neighbours in this order is the same for each seed."
        if found["settled"]
        else "Some neighbours in this order change places between the seeds.",
    ]


def _spread(row: Mapping[str, Any], name: str) -> str:
    spread = row[f"{name}_sd"]
    return f"{row[name]:,.0f}" if spread is None else f"{row[name]:,.0f} ± {spread:,.0f}"


def by_seed(work: Path) -> dict[str, list[float]]:
    """Return S of each corpus, one value a seed, in the order of the seeds."""
    lines = sorted(job.read_lines(work / "runs.jsonl"), key=lambda line: line["seed"])
    found: dict[str, list[float]] = {}
    for line in lines:
        found.setdefault(line["corpus"], []).append(line["s"])
    return found


@app.command()
def main(
    context: typer.Context,
    locomo: Annotated[Path | None, typer.Option(help="LoCoMo's conversations, as a ZIP.", exists=True)] = None,
    size: Annotated[str, typer.Option(help="WIDTHxDEPTH of the model.")] = "64x2",
    tokens: Annotated[int, typer.Option(min=1000, help="Bytes of each corpus.")] = 150_000,
    batch: Annotated[int, typer.Option(min=1, help="Texts of 128 bytes a step.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Rank texts of several kinds by the structure that a small model learns from them.

    Writes epiplexity.json and .md. About half a minute of one core for each corpus and seed.
    """
    settings = {key: value.name if key == "locomo" and value else value for key, value in context.params.items()}
    conditions = report.conditions("epiplexity", {k: v for k, v in settings.items() if k != "work"})
    texts = work / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    files = []
    for name, text in corpora(tokens, locomo).items():
        files.append(texts / name)
        job.replace_file(files[-1], partial(Path.write_bytes, data=text))
    run = EpiplexityRun(sizes=(size,), batch=batch, seeds=seeds)
    told = measure(files, run, work / "run")
    each = by_seed(work / "run")
    order = [row["corpus"] for row in told["rows"]]
    settled = all(a > b for one, two in pairwise(order) for a, b in zip(each[one], each[two], strict=True))
    found = conditions | {"report": told, "each": each, "settled": settled}
    report.write(out, "epiplexity", found, page(found))


if __name__ == "__main__":
    app()
