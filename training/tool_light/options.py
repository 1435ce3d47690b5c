"""Declare the run of `waver train tool-light`; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option
from waver.resources import MODELS


@dataclass(frozen=True)
class ToolLightRun:
    """Training of one model to call tools; a stopped run goes on only as the same one. Defaults are the paper's, except
    the lengths."""

    model: Annotated[str, Option("A causal language model: a folder, or a name.", shown="the bundled small")] = str(
        MODELS / "small"
    )
    scorer: Annotated[
        str,
        Option(
            "When an answer is right: f1 (its words are those of the known one), number, contains, or MODULE:FUNCTION."
        ),
    ] = "f1"
    collection: Annotated[str | None, Option("What `<search>` looks through; without it there is no search.")] = None
    passages: Annotated[int, Option("Passages that a search gives.", least=1)] = 3
    filter: Annotated[
        int, Option("Leave out questions that the model answers without tools, in so many tries; 0 keeps all.", least=0)
    ] = 0
    loops: Annotated[
        int, Option("Rounds of self-evolution after the first DPO; more than two hurt in the paper.", least=0)
    ] = 2
    vanilla: Annotated[float, Option("Share of the questions that are sampled plainly.", least=0.0, most=1.0)] = 0.65
    steps: Annotated[int, Option("Steps of a main chain that are branched.", least=1)] = 3
    branches: Annotated[int, Option("Branches at each.", least=1)] = 3
    branch_at: Annotated[str, Option("`step_start`, `before_peak`, or `after_window`.")] = "step_start"
    top: Annotated[int, Option("Read entropies over so many most likely tokens; 0: over all.", least=0)] = 0
    calls: Annotated[int, Option("Calls of each tool in a chain.", least=1)] = 4
    tokens: Annotated[int, Option("The most tokens of a chain, results included.", least=8)] = 1024
    temperature: Annotated[float, Option("Of the chains.", least=0.0)] = 1.0
    top_p: Annotated[float, Option("Of the chains.", least=0.01, most=1.0)] = 0.8
    top_k: Annotated[int, Option("Of the chains; 0: all.", least=0)] = 20
    repetition: Annotated[float, Option("Penalty of repetition.", least=0.01)] = 1.1
    at_once: Annotated[int, Option("Questions in the making at a time.", least=1)] = 4
    beta: Annotated[float, Option("Of the DPO.", least=1e-6)] = 0.1
    rank: Annotated[int, Option("Of the LoRA of the DPO; 0 trains all weights.", least=0)] = 8
    epochs: Annotated[float, Option("Of every training.", least=0.001)] = 3.0
    batch: Annotated[int, Option("Rows a pass.", least=1)] = 1
    accumulate: Annotated[int, Option("Passes an optimizer step.", least=1)] = 4
    sft_rate: Annotated[float, Option("Learning rate of the SFT.", least=0.0)] = 7e-6
    dpo_rate: Annotated[float, Option("Learning rate of the DPO.", least=0.0)] = 7e-6
    length: Annotated[int, Option("The most tokens of a prompt with its chain.", least=8)] = 4096
    seed: Annotated[int, Option("Seed of everything.")] = 1
