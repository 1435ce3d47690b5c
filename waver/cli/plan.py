"""Run `waver plan`: whether two models fit into memory, and what questions cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import config_option, filled
from waver.clients.plan import Plan

LOCAL = ("transformers", "vllm")


@filled(plan=Plan)
def plan(
    plan: Plan,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="A model, or the small and the large one: a folder, a config.json, or Qwen/Qwen3-SIZE."),
    ] = None,
    config: Annotated[Path | None, config_option("Take the models of this file's engines instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calculation as JSON.")] = False,
) -> None:
    """Compute the memory that models need, the GPUs that they fit into, and what questions cost.

    Weights and KV cache follow from a model's configuration, so that nothing has to be downloaded but that. Costs are
    arithmetic on the times that you give: measure the steps of your models, or take --bandwidth for lower bounds.

    Exit status: 0 where the models fit into the GPUs that there are, 3 where they do not.

        waver plan Qwen/Qwen3-0.6B Qwen/Qwen3-8B --gpu-memory 24

        waver plan Qwen/Qwen3-0.6B Qwen/Qwen3-8B --small-step 0.006 --large-step 0.016 --share 0.2 --price 2
    """
    import json

    from waver.clients.plan import compute, fits, page
    from waver.engines.footprint import read_shape

    with in_sentences(ValueError):
        shapes = [read_shape(each) for each in (models or _configured(config))]
        if len(shapes) > 2:
            raise ValueError("One model, or a small and a large one: name them, as there are more.")
        found = compute(sorted(shapes, key=lambda shape: shape.parameters), plan)
    typer.echo(json.dumps(found, indent=1) if as_json else page(found))
    raise typer.Exit(0 if fits(found) else 3)


def _configured(config: Path | None) -> list[str]:
    """Return the models of a configuration's engines that this machine runs.

    Raises:
        ValueError: it cannot be read.
    """
    from waver.server.config import load_config

    return [engine.model for engine in load_config(config).engines.values() if engine.backend in LOCAL]
