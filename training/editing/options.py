"""Declare the run of `waver edit`: what can be set, the defaults, and a line of help for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option

EDITORS = ("rlsedit", "memit", "alphaedit", "least_squares")


@dataclass(frozen=True)
class EditRun:
    """Edits of one model; more edits go into a folder only as parts of the same run."""

    editor: Annotated[str, Option("`rlsedit`, or a baseline: `memit`, `alphaedit`, `least_squares`.")] = "rlsedit"
    first: Annotated[int | None, Option("First layer to edit, from 0.", least=0, shown="by the model")] = None
    last: Annotated[int | None, Option("Last layer to edit.", least=0, shown="by the model")] = None
    batch: Annotated[int, Option("Facts written together.", least=1)] = 100
    mass: Annotated[float, Option("Number of keys of general text to hold still.", least=0.0)] = 15000.0
    anchor: Annotated[float, Option("Weight of each of them, mu squared.", least=0.0)] = 1.0
    penalty: Annotated[
        float | None,
        Option("Weight of leaving the old weights, lambda squared.", least=0.0, shown="1e-6 of the anchors' mean"),
    ] = None
    samples: Annotated[int, Option("The most tokens of general text to read.", least=1)] = 100_000
    steps: Annotated[int, Option("Steps of the search for a value.", least=1)] = 25
    rate: Annotated[float, Option("Its learning rate, as a part of the state's root mean square.", least=0.0)] = 0.5
    clamp: Annotated[float, Option("The largest change, as a part of the state's norm.", least=0.0)] = 0.75
    kl: Annotated[float, Option("Weight of leaving alone what the subject is.", least=0.0)] = 0.0625
    decay: Annotated[float, Option("Weight of a small change.", least=0.0)] = 0.5
    openings: Annotated[int, Option("Openings before the prompt, drawn from the model.", least=0)] = 5
    opening_length: Annotated[int, Option("Tokens of an opening.", least=1)] = 10
    at_once: Annotated[int, Option("Values searched for together.", least=1)] = 8
    every: Annotated[int, Option("Batches between two versions written.", least=1)] = 10
    length: Annotated[int, Option("The most tokens of a general text.", least=2)] = 256
    seed: Annotated[int, Option("Seed of the openings.")] = 1
