"""Run `waver data select`: represent a pool and the queries, order the pool, and write the nearest examples for TRL.

The work folder beside the output holds the vectors, from which another selector or budget chooses without computing
them again, and the warm-up's checkpoints with LESS.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from waver import job
from waver.extras import how_to_install
from waver.progress import counted
from waver.training import checkpoints
from waver.training.selection.instructions import course, features
from waver.training.selection.instructions.options import REPRESENTATIONS, RepresentRun
from waver.training.selection.instructions.pool import Pool, trl_row
from waver.training.selection.instructions.representations import (
    Embed,
    Embeddings,
    Gradients,
    HiddenStates,
    KeepEpochs,
    Representation,
    checkpoint_weights,
    epoch_file,
    with_adapters,
)
from waver.training.selection.instructions.selectors import SELECTORS, Selector, at_random
from waver.training.selection.instructions.similarity import Matrix, Similarity

console = Console()
MakeEmbedder = Callable[[str], tuple[Embed, int]]
"""Returns what embeds texts under a model's name, and its dimensions."""


def selector_named(name: str, seed: int) -> Selector:
    """Return a selector.

    Raises:
        ValueError: there is none of this name.
    """
    if name == "random":
        return at_random(seed)
    if name not in SELECTORS:
        raise ValueError(f"there is no selector {name!r}; there are {', '.join(SELECTORS)}, random")
    return SELECTORS[name]


def check(run: RepresentRun) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: the message says why.
    """
    if run.representation not in REPRESENTATIONS:
        raise ValueError(f"there is no representation {run.representation!r}; there are {', '.join(REPRESENTATIONS)}")
    if run.representation == "less" and find_spec("peft") is None:
        raise ValueError(f"LESS needs peft: {how_to_install('train')}")


def represent(
    pool_file: Path, query_file: Path, run: RepresentRun, work: Path, make_embedder: MakeEmbedder
) -> tuple[Pool, Pool, Similarity]:
    """Return the pool, the queries and their similarity, or go on with it.

    Raises:
        ValueError: what is asked for cannot be done, or `work` holds other vectors. OSError: a file cannot be read.
    """
    model, pool, queries = _read(pool_file, query_file, run)
    digest = checkpoints.sha256(query_file)
    job.claim(work, asdict(run) | {"pool": checkpoints.sha256(pool_file)})
    made = _representation(model, pool, run, work, make_embedder)
    with counted(console) as bar:
        task = bar.add_task("encoding", total=len(pool) + len(queries))

        def advance(count: int) -> None:
            bar.advance(task, count)

        asked = features.encode(made, queries, "query", work / f"queries-{digest[:16]}.npy", advance)
        offered = features.encode(made, pool, "candidate", work / "pool.npy", advance)
    return pool, queries, Similarity(asked, offered, made.weights)


def _read(pool_file: Path, query_file: Path, run: RepresentRun) -> tuple[Any, Pool, Pool]:
    """Return the model, the pool and the queries, checked."""
    check(run)
    model, tokens = checkpoints.load(run.model)
    with counted(console) as bar:
        task = bar.add_task("reading", total=None)
        queries = Pool(query_file, tokens, run.length, lambda: bar.advance(task))
        pool = Pool(pool_file, tokens, run.length, lambda: bar.advance(task))
    return model, pool, queries


def _representation(
    model: Any, pool: Pool, run: RepresentRun, work: Path, make_embedder: MakeEmbedder
) -> Representation:
    if run.representation == "embed":
        return Embeddings(*make_embedder(run.embedder))
    if run.representation == "rds":
        return HiddenStates(model)
    places = sorted(random.Random(f"warm-up:{run.seed}").sample(range(len(pool)), min(run.warmup_examples, len(pool))))
    planned = course.Course(run.warmup_epochs, run.warmup_rate, run.warmup_batch, run.seed)
    adapted = with_adapters(model, run.rank, run.alpha, run.dropout, run.seed)
    files = [epoch_file(work, epoch + 1) for epoch in range(run.warmup_epochs)]
    if not all(file.exists() for file in files):
        texts = [example.text for example in pool.at(places)]
        console.print(f"warming up on {len(texts):,} examples")
        course.train(adapted, texts, planned, work / "warm-up", console, [KeepEpochs(work)])
    return Gradients(adapted, files, checkpoint_weights(planned, len(places)), run.dimensions)


def select(
    pool_file: Path,
    query_file: Path,
    budget: int,
    selector: str,
    run: RepresentRun,
    out: Path,
    work: Path,
    make_embedder: MakeEmbedder,
    threads: int = 1,
) -> dict[str, Any]:
    """Write the `budget` examples that are nearest to the queries into `out`, nearest first; returns the report.

    Raises:
        ValueError: what is asked for cannot be done, or `work` holds other vectors. OSError: a file cannot be read.
    """
    chosen = selector_named(selector, run.seed)
    torch.set_num_threads(threads)
    if selector == "random":  # it needs no vectors
        _, pool, queries = _read(pool_file, query_file, run)
        found: Similarity = Matrix(np.zeros((1, len(pool))))
    else:
        pool, queries, found = represent(pool_file, query_file, run, work, make_embedder)
    if budget > len(pool):
        raise ValueError(f"{pool_file} holds {len(pool):,} examples, --budget asks for {budget:,}")
    console.print(f"ordering by {selector}")
    order = chosen(found, budget)
    job.replace_file(out, lambda path: _write(path, pool, order.places.tolist()))
    tokens = int(pool.learned[order.places].sum())
    report = {
        "examples": budget,
        "of": len(pool),
        "queries": len(queries),
        "selector": selector,
        "run": asdict(run),
        "learned_tokens": tokens,
        "learned_tokens_of_as_many_at_random": round(float(pool.learned.mean()) * budget),
        "lines": pool.lines[order.places].tolist(),
        "scores": [round(float(score), 6) for score in order.scores],
    }
    text = json.dumps(report, indent=1) + "\n"
    beside = out.with_name(out.name + ".report.json")
    job.replace_file(beside, partial(Path.write_text, data=text, encoding="utf-8"))
    usual = report["learned_tokens_of_as_many_at_random"]
    said = f"{budget:,} of {len(pool):,} examples are in {out}: {tokens:,} tokens to learn, at random {usual:,}"
    console.print(said, soft_wrap=True, highlight=False)
    return report


def _write(path: Path, pool: Pool, places: list[int]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for example in pool.at(places):
            file.write(json.dumps(trl_row(example.row), ensure_ascii=False) + "\n")


def spearman(first: Any, second: Any) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; NaN where one side is constant."""
    a, b = _ranks(np.asarray(first, np.float64)), _ranks(np.asarray(second, np.float64))
    if not a.std() or not b.std():
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Any) -> Any:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
