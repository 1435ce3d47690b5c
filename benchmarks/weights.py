"""Measure methods that change weights on small experiments: what is learned, written or forgotten, at what price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from waver import job
from waver.benchmarks import report
from waver.benchmarks.stats import mean_interval
from waver.benchmarks.weights_activation import crrelu
from waver.benchmarks.weights_attention import guided
from waver.benchmarks.weights_toys import Found, kappatune, shredding

WORK = Path("data/bench/weights")

app = report.command()

EXPERIMENTS: dict[str, Callable[[int], Found]] = {
    "kappatune": kappatune,
    "shred": shredding,
    "crrelu": crrelu,
    "entropy_guided_attention": guided,
}
WORDS = {
    "kappatune": "A soft mixture of eight experts learns task A, then task B with five of its sixteen tensors, until "
    "B's loss is at 0.7 of its start. `forgetting`: the loss on A afterwards, as a multiple of before.",
    "shred": "A two-layer transformer knows a grammar and forty documents with names and secrets; twenty are to be "
    "forgotten, until their secrets are at a probability of 0.10 or 400 steps are over. `selected`: the share of the "
    "secrets among the demoted tokens; `carriers`: probability of the other tokens; `grammar_rise`: nats; "
    "`others_kept`: the part that the other documents' secrets keep of their probability.",
    "crrelu": "A network of three hidden layers of 24 learns a product of three sines of eight inputs. `error`: the "
    "squared error on fresh points as a part of the variance; `eps`: the mean coefficient afterwards, from 0.01.",
    "entropy_guided_attention": "Two layers whose only nonlinearity is the softmax learn to repeat a noisy segment. "
    "`tempered`: with learned temperatures; `guided`: with a loss on the entropy of attention rows, by its weight. "
    "`first_layer`: mean row entropy of the first layer as a part of log 32.",
}


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    parts = [
        "# Methods that change weights",
        f"Small experiments (`benchmarks/weights_toys.py`), {settings['seeds']} seeds: the mean, and in brackets its "
        "95 % interval (Student's t). They show that a method does what it is for, not what it is worth on a large "
        "model.",
    ]
    for name, rows in found["rows"].items():
        measures = list(next(iter(rows[0].values())))
        cells = [(f"`{way}`", *(_cell([row[way][each] for row in rows]) for each in measures)) for way in rows[0]]
        parts += [f"## `{name}`", WORDS[name], report.table(("", *measures), cells)]
    return parts


def _cell(values: Sequence[float]) -> str:
    numbers = np.array(values, float)
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    low, high = mean_interval(numbers)
    return f"{numbers.mean():.3f} ({low:.3f} to {high:.3f})"


@app.command()
def main(
    context: typer.Context,
    only: Annotated[str | None, typer.Option(help="Experiments, with commas.", show_default="all")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, on seeds from 0 on.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Run the experiments; writes weights.json and .md. Some 80 seconds of one core for a seed."""
    report.need_extra()
    wanted = only.split(",") if only else list(EXPERIMENTS)
    if unknown := sorted(set(wanted) - set(EXPERIMENTS)):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    conditions = report.conditions("weights", dict(context.params))
    torch.set_num_threads(1)
    job.claim(work, {"version": 1})
    done = {(line["experiment"], line["seed"]): line["values"] for line in job.read_lines(work / "runs.jsonl")}
    rows: dict[str, list[Found]] = {name: [] for name in wanted}
    with report.progress() as bar:
        task = bar.add_task("experiments", total=len(wanted) * seeds)
        for name in wanted:
            bar.update(task, description=name)
            for seed in range(seeds):
                if (name, seed) not in done:
                    done[name, seed] = EXPERIMENTS[name](seed)
                    line = {"experiment": name, "seed": seed, "values": done[name, seed]}
                    job.append_line(work / "runs.jsonl", line)
                rows[name].append(done[name, seed])
                bar.advance(task)
    report.write(out, "weights", conditions | {"rows": rows}, page({**conditions, "rows": rows}))


if __name__ == "__main__":
    app()
