"""Facts that are changed against what a model knows, with questions that should and should not notice.

`edit` asks for what was changed, `rephrased` in other words, `hop` for what follows from it. `same subject` asks for
something else about the same thing, `other` about another: their answers should stay as they were.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from waver.training.pair.world import RELATIONS, towns

CHANGED, KEPT = ("edit", "rephrased", "hop"), ("same subject", "other")


@dataclass(frozen=True)
class Edit:
    """A statement with the value that it gives, and questions by kind, each with what its answer should contain; any of
    several where it has alternatives, nothing where the answer should stay as it was."""

    statement: str
    questions: dict[str, tuple[str, tuple[str, ...]]]


FILE = Path(__file__).with_suffix(".jsonl")


def known() -> list[Edit]:
    """Return changes of what is known everywhere."""
    edits = []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        questions: dict[str, tuple[str, tuple[str, ...]]] = {
            "edit": (row["edit"], (row["value"],)),
            "rephrased": (row["rephrased"], (row["value"],)),
            "hop": (row["hop"], tuple(row["follows"])),
            **{kind: (row[kind], ()) for kind in KEPT},
        }
        edits.append(Edit(row["statement"], questions))
    return edits


def of_the_world(count: int, seed: int) -> list[Edit]:
    """Return changes of facts about towns that the bundled models know; nothing follows from them."""
    draw = random.Random(f"counterfactuals:{seed}")
    chosen = draw.sample(towns()["frequent"] + towns()["rare"], 2 * count)
    edits = []
    for town, other in zip(chosen[:count], chosen[count:], strict=True):
        relation, same, apart = (*draw.sample(list(RELATIONS), 2), draw.choice(list(RELATIONS)))
        asked = RELATIONS[relation]
        value = draw.choice([each for each in asked.values if each != town.facts[relation]])
        first, second = draw.sample(asked.questions, 2)
        questions: dict[str, tuple[str, tuple[str, ...]]] = {
            "edit": (first.format(town=town.name), (value,)),
            "rephrased": (second.format(town=town.name), (value,)),
            "same subject": (draw.choice(RELATIONS[same].questions).format(town=town.name), ()),
            "other": (draw.choice(RELATIONS[apart].questions).format(town=other.name), ()),
        }
        edits.append(Edit(asked.statement.format(town=town.name, value=value), questions))
    return edits
