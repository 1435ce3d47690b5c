"""Compress a model by search and by simple rules to the same size, and compare what is left (EvoPress, 2410.14649).

Sub-blocks are removed by search, or whole blocks by the cosine of what goes in and comes out; weights are set to zero
at levels that a search finds for each layer, or at one level. A search sees calibration texts, both are judged on
others: the divergence from the dense model, and the share of answers that greedy decoding gets exactly right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import PreTrainedModel

from waver import job
from waver.benchmarks import report
from waver.benchmarks.hard_tokens import Rows, scored
from waver.benchmarks.stats import mean_interval
from waver.resources import MODELS
from waver.training import checkpoints
from waver.training.compression.fitness import divergence
from waver.training.compression.options import CompressRun
from waver.training.compression.run import compress
from waver.training.pair.data import Turn, answer_sum, encode
from waver.training.pair.world import RELATIONS, SUM_PROMPTS, chain, towns, write_sum

WORK = Path("data/bench/compression")
CASES = {"depth": (0.25, 0.5), "sparsity": (0.5, 0.7)}
RULES = {"depth": "by_cosine", "sparsity": "uniform"}
TEXTS, JUDGED = 200, 300
JUDGED_SEED = 41

app = report.command()


def turns(seed: int, count: int) -> list[Turn]:
    """Return questions with answers as the bundled models give them: sums, and facts of towns, by turns."""

    draw = random.Random(f"compression:{seed}")
    found = []
    for i in range(count):
        if i % 2:
            town, name = draw.choice(towns()["frequent"] + towns()["rare"]), draw.choice(list(RELATIONS))
            question = draw.choice(RELATIONS[name].questions).format(town=town.name)
            found.append(Turn(question, town.statement(name)))
        else:
            terms = chain(draw.randint(1, 6), draw)
            question = draw.choice(SUM_PROMPTS).format(sum=write_sum(terms))
            found.append(Turn(question, answer_sum(terms, "working")))
    return found


def judging(dense: PreTrainedModel, rows: Rows) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Return what judges a model: its divergence from the dense one (nats a token of the answers), and the share of
    answers of which it makes every token the likeliest, which are those that greedy decoding gets exactly right."""
    with torch.inference_mode():
        before = [scored(dense, [row])[0] for row in rows]

    @torch.inference_mode()
    def judge(model: PreTrainedModel) -> dict[str, float]:
        total, tokens, right = 0.0, 0, 0
        for row, known in zip(rows, before, strict=True):
            logits, labels = scored(model, [row])
            total, tokens = total + float(divergence(known, logits).sum()), tokens + len(labels)
            right += bool((logits.argmax(-1) == labels).all())
        return {"divergence": total / tokens, "right": right / len(rows)}

    return judge


def calibration(file: Path, seed: int) -> Path:
    """Write the texts that a search is scored on."""
    rows = [{"question": each.user, "answer": each.answer} for each in turns(seed, TEXTS)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    job.replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))
    return file


def page(found: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    settings = found["settings"]
    rows = [
        (kind, f"{target:g}", way, *(_cell([run[name] for run in runs]) for name in ("divergence", "right")))
        for (kind, target, way), runs in _grouped(found["runs"]).items()
    ]
    return [
        "# Compression by search",
        f"The bundled large model, {settings['seeds']} seeds (calibration texts, search): the mean, and in brackets "
        f"its 95 % interval (Student's t). Judged on {JUDGED} other sums and facts: divergence from the dense model in "
        f"nats a token of the answers, and exactly right answers (dense: {report.percent(found['dense']['right'])}). "
        f"`found` is the search (16 mutations, {settings['generations']} generations at most); `by_cosine` removes "
        "the blocks that change the least, `uniform` has one level for all layers. Depth: the share of the four "
        "blocks; sparsity: the share of the weights.",
        report.table(("kind", "removed", "way", "divergence", "right"), rows),
    ]


def _grouped(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float, str], list[Mapping[str, float]]]:
    found: dict[tuple[str, float, str], list[Mapping[str, float]]] = {}
    for run in runs:
        for way, values in run["judged"].items():
            found.setdefault((run["kind"], run["target"], way), []).append(values)
    return found


def _cell(values: Sequence[float]) -> str:
    numbers = np.array(values, float)
    if len(numbers) == 1 or np.ptp(numbers) == 0:
        return f"{numbers[0]:.3f}"
    low, high = mean_interval(numbers)
    return f"{numbers.mean():.3f} ({low:.3f} to {high:.3f})"


@app.command()
def main(
    context: typer.Context,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    generations: Annotated[int, typer.Option(min=1, help="Most generations of a search.")] = 60,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare searched with uniform compression, and with removal by cosine, on the bundled large model.

    Writes compression.json and .md. A few minutes of one core.
    """
    report.need_extra()
    settings = {key: value for key, value in context.params.items() if key != "work"}
    conditions = report.conditions("compression", settings)
    torch.set_num_threads(1)
    model = str(MODELS / "large")
    dense, tokens = checkpoints.load(model)
    dense.eval()
    rows = [encode([each], tokens.tokenizer) for each in turns(JUDGED_SEED, JUDGED)]
    judge = judging(dense, rows)
    runs = []
    for seed in range(1, seeds + 1):
        work.mkdir(parents=True, exist_ok=True)
        data = calibration(work / f"texts-{seed}.jsonl", seed)
        for kind, targets in CASES.items():
            for target in targets:
                run = CompressRun(kind=kind, target=target, fast=True, generations=generations, length=64, seed=seed)
                folder = work / f"{kind}-{target:g}-{seed}"
                done = compress(model, data, run, folder, judge)
                runs.append({"kind": kind, "target": target, "seed": seed, "judged": done["judged"]})
    found = conditions | {"dense": judge(dense), "runs": runs}
    report.write(out, "compression", found, page(found))


if __name__ == "__main__":
    app()
