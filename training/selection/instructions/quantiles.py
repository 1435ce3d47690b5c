"""Run `waver data quantiles`: tell whether a similarity predicts the loss (arXiv 2602.14696, section 4.1).

The whole pool is ordered by round robin and cut into slices; the model is fine-tuned on each, and the loss on the
queries should rise from slice to slice. The model as it is, and one fine-tuned on random examples, are told beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from waver import job
from waver.training import checkpoints
from waver.training.selection.instructions import course
from waver.training.selection.instructions.options import QuantileRun, RepresentRun
from waver.training.selection.instructions.pool import Pool
from waver.training.selection.instructions.run import MakeEmbedder, console, represent, spearman
from waver.training.selection.instructions.selectors import at_random, round_robin
from waver.training.texts import mean_loss


def slices(order: Sequence[int], count: int, examples: int) -> list[list[int]]:
    """Cut an order into `count` equal slices and return the first `examples` of each.

    Raises:
        ValueError: there are fewer places than slices.
    """
    if len(order) < count:
        raise ValueError(f"a pool of {len(order)} examples cannot be cut into {count} slices")
    return [part[:examples].tolist() for part in np.array_split(np.asarray(order), count)]


def measure(
    pool_file: Path,
    query_file: Path,
    held_out: Path | None,
    run: RepresentRun,
    plan: QuantileRun,
    out: Path,
    work: Path,
    make_embedder: MakeEmbedder,
    threads: int = 1,
) -> dict[str, Any]:
    """Train on every slice, or go on; returns the report.

    Args:
        held_out: examples of the task that the loss is measured on, other than the queries, which chose the order.

    Raises:
        ValueError: what is asked for cannot be done, or a folder holds another run. OSError: a file cannot be read.
    """
    torch.set_num_threads(threads)
    pool, queries, found = represent(pool_file, query_file, run, work, make_embedder)
    order = round_robin(found, len(pool)).places
    parts: dict[str, list[int]] = {"zero-shot": [], "random": at_random(run.seed)(found, plan.examples).places.tolist()}
    parts |= {str(i + 1): part for i, part in enumerate(slices(order.tolist(), plan.slices, plan.examples))}
    told = {"held_out": checkpoints.sha256(held_out) if held_out else None, "queries": checkpoints.sha256(query_file)}
    job.claim(out, asdict(run) | asdict(plan) | told | {"pool": checkpoints.sha256(pool_file)})
    done = {line["slice"]: line["loss"] for line in job.read_lines(out / "slices.jsonl")}
    for name, places in parts.items():
        if name not in done:
            console.print(f"slice {name}: {len(places)} examples")
            done[name] = _loss(pool, held_out or queries.file, places, run, plan, out / f"slice-{name}")
            job.append_line(out / "slices.jsonl", {"slice": name, "examples": len(places), "loss": done[name]})
    losses = [done[str(i + 1)] for i in range(plan.slices)]
    rho = spearman(range(plan.slices), losses)
    report = {
        "zero_shot": done["zero-shot"],
        "random": done["random"],
        "losses": losses,
        "spearman": rho if math.isfinite(rho) else None,
        "measured_on": "held out" if held_out else "the queries themselves",
        "run": asdict(run) | asdict(plan),
    }
    text = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", partial(Path.write_text, data=text, encoding="utf-8"))
    console.print(_said(report), soft_wrap=True, highlight=False)
    return report


def _said(report: dict[str, Any]) -> str:
    losses = ", ".join(f"{loss:.4f}" for loss in report["losses"])
    rho = report["spearman"]
    verdict = (
        "cannot be said" if rho is None else f"{rho:+.2f} (1: this similarity orders the loss; 0: it says nothing)"
    )
    return (
        f"loss on {report['measured_on']}, nearest slice first: {losses}; as it is {report['zero_shot']:.4f}, "
        f"on random examples {report['random']:.4f}\nSpearman of slice and loss: {verdict}"
    )


def _loss(pool: Pool, asked: Path, places: list[int], run: RepresentRun, plan: QuantileRun, folder: Path) -> float:
    model, tokens = checkpoints.load(run.model)
    texts = Pool(asked, tokens, run.length)
    if places:
        planned = course.Course(plan.epochs, plan.rate, plan.batch, run.seed)
        course.train(model, [example.text for example in pool.at(places)], planned, folder, console)
    return mean_loss(model, [example.text for example in texts.at(range(len(texts)))])
