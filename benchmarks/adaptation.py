"""Measure methods that learn from few examples, or keep entropy while they learn, on small experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.benchmarks import report
from waver.benchmarks.experiments import Experiment, measure
from waver.benchmarks.hard_tokens import ENOUGH, MOST_STEPS, OPEN, RIGHT, hard_tokens
from waver.benchmarks.increments import increments

WORK = Path("data/bench/adaptation")
EXPERIMENTS = {
    "mamba_fscil": Experiment(
        increments,
        "Synthetic feature maps of 19 classes: ten in the first session, then three times three more from five "
        "examples each, beside the mean maps of earlier classes. Accuracy at the end over all classes, those of the "
        "first session (`base`) and later ones (`novel`). `gate ratio`: how open the second branch's gate is on base "
        "classes, as a part of how open it is on new ones; lower is better.",
    ),
    "light_if": Experiment(
        hard_tokens,
        f"The bundled small model, tuned on {2 * OPEN} facts that it does not know, {OPEN} of them with one answer, "
        f"the others with {RIGHT} equally frequent ones, until {100 * ENOUGH:.0f} % of the first are right, at most "
        f"{MOST_STEPS} steps. Entropies in nats, under the answers learned; `where answers part`: the largest of an "
        f"answer's tokens, of which log {RIGHT} = 1.099 is right. A loss over all learned tokens counts against "
        "Entropy-SFT, which leaves out what is known.",
    ),
}

app = report.command()


@app.command()
def main(
    context: typer.Context,
    only: Annotated[str | None, typer.Option(help="Experiments, with commas.", show_default="all")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, on seeds from 0 on.")] = 6,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Run the experiments; writes adaptation.json and .md. About a minute of one core for a seed."""
    report.need_extra()
    opening = [
        "# Methods that learn from few examples, or keep entropy",
        f"Small experiments, {seeds} seeds: the mean, and in brackets its 95 % interval (Student's t).",
    ]
    measure("adaptation", opening, EXPERIMENTS, dict(context.params))


if __name__ == "__main__":
    app()
