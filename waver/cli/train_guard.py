"""Run `waver train guard`: grow a guard for `safeharbor` from reviewed files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import config_option, filled
from waver.training.guard.options import GuardFit


@filled(how=GuardFit)
def train_guard(
    rules: Annotated[Path, typer.Argument(help="JSONL: `category`, `forbid`, `allow` and `example` of each rule.")],
    examples: Annotated[Path, typer.Argument(help="JSONL: `text` and `label`, `harmful` or `benign`.")],
    out: Annotated[Path, typer.Option(help="Folder for the guard.")],
    how: GuardFit,
    threshold: Annotated[float, typer.Option(help="Entropy from which an example opens a cluster.")] = 0.6,
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of examples that set the thresholds.")] = 0.2,
    config: Annotated[Path | None, config_option("A YAML file; its `retrieval` names the embedder.")] = None,
) -> None:
    """Grow a guard for `safeharbor`: a tree of rules, a store of harmless requests, and a projector.

    Both files are taken as they are: read them before, as whoever adds to them decides what is refused. A share of the
    examples is held out, and sets the thresholds: `low` lets at most 1 % of the harmful ones through and is 0.2 at
    most, and `high` lies below nine tenths of the harmless ones. Name the folder in the configuration: `guards: {mine:
    guards/mine}`.

        waver train guard rules.jsonl examples.jsonl --out guards/mine
    """
    from waver.retrieval.base import RetrievalError

    with in_sentences(RetrievalError, ValueError, OSError):
        _train(rules, examples, out, how, threshold, held_out, config)


def _train(
    rules: Path, examples: Path, out: Path, how: GuardFit, threshold: float, held_out: float, config: Path | None
) -> None:
    """Read the files, embed them, fit, and write.

    Raises:
        ValueError: a file does not fit. RetrievalError: the embedder cannot be loaded.
    """
    import torch

    from waver.policies.guard.building import built, read_examples, read_rules
    from waver.retrieval.library import Library
    from waver.server.config import load_config
    from waver.training.guard.fit import fit

    pairs, rows = read_rules(rules), read_examples(examples)
    library = Library(load_config(config).retrieval)
    try:
        guard = built(
            library.embedder(),
            pairs,
            rows,
            lambda vectors, harmful: fit(torch.from_numpy(vectors), torch.from_numpy(harmful), how),
            threshold,
            held_out,
            how.seed,
        )
    finally:
        library.close()
    guard.save(out)
    record = guard.record
    typer.echo(f"{len(guard.rules)} rules in {len(guard.vectors['centres'])} clusters; {record.about}")
    typer.echo(f"low {record.low:.3f}, high {record.high:.3f}: written to {out}")
