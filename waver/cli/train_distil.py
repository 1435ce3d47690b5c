"""Run `waver train distil`: a student learns from an expert on its own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing
from waver.cli.fill import config_option, filled
from waver.training.distil.options import Distil
from waver.training.options import RlRun


@filled(distil=Distil, run=RlRun)
def train_distil(
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    distil: Distil,
    run: RlRun,
    config: Annotated[Path | None, config_option("A YAML file, with the engine that is the expert.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Have a model learn from an expert's next-token distributions on answers of its own (arXiv 2606.05152).

    The expert is a larger engine with the same tokenizer, samples of any engine, or the model itself when it is told
    how its attempts went. The trained model is in OUT/model, ready for `waver serve`. Needs the extra `train`.

        waver train distil --out run --engine large

        waver train distil --out run --expert feedback --feedback waver.training.distil.feedback:known_answer
    """
    with importing("train"):
        from waver.training.distil.run import train
    from waver.engines import LoraConfig
    from waver.engines.base import EngineError, Unsupported
    from waver.server.config import load_config

    try:
        chosen = None
        if distil.expert != "feedback":
            configured = load_config(config)
            if distil.engine not in configured.engines:
                there = ", ".join(configured.engines)
                raise ValueError(f"there is no engine {distil.engine!r} in the configuration: {there}")
            named = configured.engines[distil.engine]
            if isinstance(named, LoraConfig):
                raise ValueError(f"engine {distil.engine!r} is an adapter: name an engine with a model of its own")
            chosen = named
        train(run, distil, chosen, out, threads)
    except (ValueError, OSError, EngineError, Unsupported) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
