"""Declare the runs of `waver tune` and `waver forget`: what can be set, the defaults, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option
from waver.resources import MODELS

ADAPTERS = ("lora", "dynmole", "queryable_lora")
SELECTIONS = ("kappatune", "all", "random", "reverse")
ACTIVATION = "crrelu"


@dataclass(frozen=True)
class TuneRun:
    """Tuning of one model on texts; a stopped run goes on only as the same one."""

    model: Annotated[str, Option("A causal language model: a folder, or a name.", shown="the bundled small")] = str(
        MODELS / "small"
    )
    select: Annotated[str, Option("`kappatune`, `all`, `random`, or `reverse`: the largest condition numbers.")] = (
        "kappatune"
    )
    share: Annotated[float, Option("Part of the tensors to train.", least=0.0, most=1.0)] = 0.2
    count: Annotated[int | None, Option("Number of tensors, in place of --share.", least=1)] = None
    parameters: Annotated[int | None, Option("Most parameters in them, in place of --share.", least=1)] = None
    threshold: Annotated[float | None, Option("Largest condition number, in place of --share.", least=1.0)] = None
    by_shape: Annotated[bool, Option("Rank among tensors of one shape.")] = False
    largest: Annotated[int, Option("Leave out tensors with a longer side.", least=1)] = 16384
    rank: Annotated[int, Option("Rank of LoRA adapters on the chosen layers; 0 trains the tensors.", least=0)] = 0
    adapter: Annotated[
        str, Option("With --rank, `lora`, or adapters that differ by token: `dynmole`, `queryable_lora`.")
    ] = "lora"
    experts: Annotated[int, Option("Experts of dynmole on each layer.", least=1)] = 6
    atoms: Annotated[int, Option("Operators that layers of queryable_lora share.", least=1)] = 16
    match: Annotated[
        int | None, Option("Raise --rank to the parameters of a LoRA of this rank on all layers.", least=1)
    ] = None
    activation: Annotated[
        str | None,
        Option("`crrelu`: put it into the MLPs, and train these in place of a selection.", shown="the model's"),
    ] = None
    guide: Annotated[
        float, Option("Weight of a loss that holds attention heads' entropies near learned points; 0: none.", least=0.0)
    ] = 0.0
    tolerance: Annotated[
        float, Option("How far a head may be from its point, as a part of the largest entropy.", least=0.0, most=1.0)
    ] = 0.2
    dropout: Annotated[float, Option("Dropout of LoRA.", least=0.0, most=0.9)] = 0.05
    steps: Annotated[int, Option("Optimizer steps.", least=1)] = 200
    batch: Annotated[int, Option("Texts a step.", least=1)] = 8
    length: Annotated[int, Option("The most tokens of a text.", least=2)] = 256
    learning_rate: Annotated[
        float | None, Option("Learning rate of AdamW, constant.", least=0.0, shown="5e-5; 2e-4 for LoRA")
    ] = None
    keep: Annotated[
        float,
        Option("Share of the tokens to learn: the hardest for their entropy (Entropy-SFT: 0.8).", least=0.0, most=1.0),
    ] = 1.0
    entropy_weight: Annotated[float, Option("Weight of the entropy in that choice.", least=0.0)] = 0.8
    every: Annotated[int, Option("Steps between checkpoints.", least=1)] = 50
    seed: Annotated[int, Option("Seed of the order of the texts, and of --select random.")] = 1


@dataclass(frozen=True)
class ForgetRun:
    """Forgetting of texts by one model; a stopped run goes on only as the same one."""

    method: Annotated[str, Option("`shred`, or a baseline: `npo`, `ascent`.")] = "shred"
    share: Annotated[
        float | None,
        Option("Percent of tokens to demote.", least=0.0, most=100.0, shown="50 of answers, 25 of documents"),
    ] = None
    skip: Annotated[int, Option("First tokens of a document that are not demoted.", least=0)] = 8
    top: Annotated[int, Option("Likeliest tokens kept of each distribution.", least=2)] = 64
    nucleus: Annotated[float | None, Option("Demote likeliest tokens of this mass, too.", least=0.0, most=1.0)] = None
    reference: Annotated[
        str | None, Option("A model that never saw the texts, by which to rank their tokens.", shown="none")
    ] = None
    stop: Annotated[float, Option("Stop when demoted tokens are no likelier.", least=0.0, most=1.0)] = 0.1
    check: Annotated[int, Option("Steps between two looks at that.", least=1)] = 10
    steps: Annotated[int, Option("The most optimizer steps.", least=1)] = 1000
    batch: Annotated[int, Option("Texts a step.", least=1)] = 4
    length: Annotated[int, Option("The most tokens of a text; documents are cut into such.", least=2)] = 512
    learning_rate: Annotated[float, Option("Learning rate of AdamW, constant.", least=0.0)] = 1e-5
    every: Annotated[int, Option("Steps between checkpoints.", least=1)] = 50
    seed: Annotated[int, Option("Seed of the order of the texts.")] = 1
    relearn: Annotated[int, Option("Afterwards, steps of an attack by training on half of the texts.", least=0)] = 0
