"""Run `waver preferences`: make and measure pairs for DPO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import filled
from waver.training.preferences.options import Made, Measured

preferences = typer.Typer(no_args_is_help=True, help="Make and measure preference pairs for `waver train dpo`.")

Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@preferences.command()
@filled(made=Made)
def sample(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`.")],
    policy: Annotated[str, typer.Option(help="A tuned model that shows the update to learn.")],
    out: Annotated[Path, typer.Option(help="Folder for the pairs; a stopped run there goes on.")],
    made: Made,
    threads: Threads = 1,
) -> None:
    """Draw answers of a model and pair them so that DPO at the same --beta learns the update of a tuned one.

    With `--side rejected`, chosen answers are plain ones, and rejected ones are resampled with weights
    (reference / policy)^beta; `--side chosen` mirrors it (arXiv 2505.23761). The pairs are in OUT/pairs.jsonl.

        waver preferences sample questions.jsonl --policy run/model --out pairs
    """
    with importing("train"):
        from waver.training.preferences.sampler import make_pairs
    with in_sentences(ValueError, OSError):
        make_pairs(questions, policy, made, out, threads)


@preferences.command()
@filled(measured=Measured)
def measure(
    pairs: Annotated[Path, typer.Argument(help="JSONL, as `waver train dpo` takes it.")],
    policy: Annotated[str, typer.Option(help="The model that was tuned on them, or that is aimed at.")],
    out: Annotated[Path, typer.Option(help="Folder for the measures; a stopped run there goes on.")],
    measured: Measured,
    threads: Threads = 1,
) -> None:
    """Measure pairs by the differential information distribution (arXiv 2505.23761), in nats.

    Its entropy tells whether an update reinforces few answers (low) or smooths (high). With --rejected-by the power law
    is fitted that makes DPO's reward the optimal one, and its beta. OUT/report.json has the figures.

        waver preferences measure pairs.jsonl --policy run/model --out measures
    """
    with importing("train"):
        from waver.training.preferences.measures import measure as work
    with in_sentences(ValueError, OSError):
        work(pairs, policy, measured, out, threads)
