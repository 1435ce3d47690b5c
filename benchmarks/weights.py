"""Measure methods that change weights on small experiments: what is learned, written or forgotten, at what price."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.benchmarks import report
from waver.benchmarks.experiments import Experiment, measure
from waver.benchmarks.weights_activation import crrelu
from waver.benchmarks.weights_attention import guided
from waver.benchmarks.weights_editing import rlsedit
from waver.benchmarks.weights_routing import dynmole, mixed_tasks, queryable_lora
from waver.benchmarks.weights_toys import kappatune, shredding

WORK = Path("data/bench/weights")

app = report.command()

EXPERIMENTS = {
    "kappatune": Experiment(
        kappatune,
        "A soft mixture of eight experts learns task A, then task B with five of its sixteen tensors, until "
        "B's loss is at 0.7 of its start. `forgetting`: the loss on A afterwards, as a multiple of before.",
    ),
    "rlsedit": Experiment(
        rlsedit,
        "600 edits of one 512 x 64 matrix in batches of ten. `first` and `last`: the share of the first and the last "
        "hundred that are nearer to the new value than to the old one; `drift`: the squared change on general keys, as "
        "a part of the square.",
    ),
    "shred": Experiment(
        shredding,
        "A two-layer transformer knows a grammar and forty documents with names and secrets; twenty are to be "
        "forgotten, until their secrets are at a probability of 0.10 or 400 steps are over. `selected`: the share of "
        "the secrets among the demoted tokens; `carriers`: probability of the other tokens; `grammar_rise`: nats; "
        "`others_kept`: the part that the other documents' secrets keep of their probability.",
    ),
    "crrelu": Experiment(
        crrelu,
        "A network of three hidden layers of 24 learns a product of three sines of eight inputs. `error`: the "
        "squared error on fresh points as a part of the variance; `eps`: the mean coefficient afterwards, from 0.01.",
    ),
    "entropy_guided_attention": Experiment(
        guided,
        "Two layers whose only nonlinearity is the softmax learn to repeat a noisy segment. "
        "`tempered`: with learned temperatures; `guided`: with a loss on the entropy of attention rows, by its weight. "
        "`first_layer`: mean row entropy of the first layer as a part of log 32.",
    ),
    "dynmole": Experiment(
        dynmole,
        "A linear layer learns six regimes; three tokens of ten lie half-way between two. LoRA of rank 15 against six "
        "experts of rank 2 with a router. `error`: squared error on fresh tokens as a part of the variance; `active`: "
        "experts of a token.",
    ),
    "queryable_lora": Experiment(
        queryable_lora,
        "Six residual layers, trained on one function, are adapted to one of four regimes with 4,000 noisy points. "
        "`informed`: with a prior over atoms that knows a point's regime; `misinformed`: with one of a random regime. "
        "`error`: squared error on fresh points as a part of the variance.",
    ),
    "mixed_tasks": Experiment(
        mixed_tasks,
        "The bundled small model learns facts about 16 new towns and a new operation on numbers at once, in 150 steps. "
        "Losses of other wordings and other numbers, in nats.",
    ),
}


@app.command()
def main(
    context: typer.Context,
    only: Annotated[str | None, typer.Option(help="Experiments, with commas.", show_default="all")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, on seeds from 0 on.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Run the experiments; writes weights.json and .md. Some 3 minutes of one core for a seed."""
    report.need_extra()
    opening = [
        "# Methods that change weights",
        f"Small experiments (`benchmarks/weights_toys.py`), {seeds} seeds: the mean, and in brackets its 95 % interval "
        "(Student's t). They show that a method does what it is for, not what it is worth on a large model.",
    ]
    measure("weights", opening, EXPERIMENTS, dict(context.params))


if __name__ == "__main__":
    app()
