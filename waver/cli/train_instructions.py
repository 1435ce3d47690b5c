"""Run `waver train instructions`: instructions that can be checked, sorted by how well an engine follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import config_option, filled
from waver.training.tasks.instructions.options import InstructionRun, Sifting


@filled(run=InstructionRun, sifting=Sifting)
def train_instructions(
    out: Annotated[Path, typer.Option(help="Folder for the instructions; a stopped run there goes on.")],
    run: InstructionRun,
    sifting: Sifting,
    config: Annotated[Path | None, config_option("A YAML file.")] = None,
) -> None:
    """Make instructions with constraints that can be checked, and sort them by how well an engine follows them.

    The engine answers each several times. OUT gets hard.jsonl, easy.jsonl and pass.jsonl, and in cold_start.jsonl its
    own right, deep and fluent answers. They are the data of Light-IF (arXiv 2508.03178):

        waver train instructions --out data --engine large

        waver tune data/cold_start.jsonl --out cold --select all --keep 0.8 --model MODEL

        waver train rl --out stage1 --model cold/model --method light_if --task instructions --data data/easy.jsonl

        waver train rl --out stage2 --model stage1/model --method light_if --task instructions --data data/hard.jsonl
    """
    with importing("train"):
        from waver.training.tasks.instructions.harvest import harvest
    from waver.engines import LoraConfig
    from waver.engines.base import EngineError
    from waver.server.config import load_config

    with in_sentences(ValueError, OSError, EngineError):
        configured = load_config(config)
        if run.engine not in configured.engines:
            there = ", ".join(configured.engines)
            raise ValueError(f"there is no engine {run.engine!r} in the configuration: {there}")
        chosen = configured.engines[run.engine]
        if isinstance(chosen, LoraConfig):
            raise ValueError(f"engine {run.engine!r} is an adapter: name an engine with a model of its own")
        harvest(chosen, run, sifting, out)
