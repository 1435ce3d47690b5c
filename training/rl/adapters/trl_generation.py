"""Collect the rows of a step, part by part, and show them to every process in the order of one process alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from waver.training.rl.adapters.forward import SAID
from waver.training.rl.adapters.trl_correct import Judge
from waver.training.rl.adapters.trl_ranks import Ranks
from waver.training.rl.adapters.trl_rows import PLACE, stack

SHOWN = (
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask"),
    *("ref_per_token_logps", "importance_sampling_ratio"),
)
"""Fields that processes show each other of a generation of TRL, besides what the old policy says."""
LEARNED_FROM = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


@dataclass
class Generation:
    """The rows of one step.

    Args:
        size: rows of a group, which lie side by side.
    """

    ranks: Ranks
    size: int
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of this process, as TRL gives them."""
    keys: list[int] = field(default_factory=list)
    """Of the rows of this process: their place among the rows of all."""
    scores: list[torch.Tensor] = field(default_factory=list)
    """Of all processes, `[rows, reward functions]` for each part."""
    draws: list[int] = field(default_factory=list)
    """Of each part: which draw of the plan it is."""

    def add(self, part: dict[str, Any], scores: torch.Tensor, draw: int, real: int | None = None) -> None:
        """Add what was drawn.

        Args:
            part: the rows of this process. scores: those of all.
            real: how many of all count; the others were drawn to give every process as many.
        """
        before = sum(map(len, self.scores))
        self.keys += self.ranks.mine(range(before, before + len(scores)))
        self.parts.append(part)
        self.scores.append(scores.clone())
        self.scores[-1][real if real is not None else len(scores) :] = torch.nan
        self.draws.append(draw)

    def mixed(self, judge: Judge) -> int:
        """Return how many groups of the main draw are neither all right nor all wrong."""
        main = torch.cat([x for x, draw in zip(self.scores, self.draws, strict=True) if draw == 0])
        right = judge(main).view(-1, self.size)
        return int((right != right[:, :1]).any(1).sum())

    @property
    def all_scores(self) -> torch.Tensor:
        """The scores of all rows, `[B, reward functions]`; nan for those that do not count."""
        return torch.cat(self.scores)

    @property
    def group(self) -> torch.Tensor:
        """The group of each row, `[B]`, in rising order."""
        return torch.arange(len(self.all_scores), device=self.all_scores.device) // self.size

    @property
    def draw(self) -> torch.Tensor:
        """The draw of each row, `[B]`."""
        each = [torch.full((len(x),), draw) for x, draw in zip(self.scores, self.draws, strict=True)]
        return torch.cat(each).to(self.all_scores.device)

    def everything(self, padding: int) -> dict[str, torch.Tensor]:
        """Return the rows of all processes, part after part, each in the order of the prompts."""
        own = stack(self.parts, padding)
        wanted = {name: x for name, x in own.items() if name in SHOWN or name.startswith(SAID)}
        key = torch.tensor(self.keys, device=own["completion_ids"].device)
        rows = self.ranks.rows({"key": key, **wanted})
        order = rows.pop("key").argsort()
        return {name: x[order] for name, x in rows.items()}


def further_rows(dataset: Any, rows: Sequence[int], total: int, size: int, seed: int) -> list[dict[str, Any]]:
    """Return some of `total` rows of prompts drawn at random, `size` rows of each side by side.

    Args:
        rows: which of them. seed: of the choice; every process has to make the same.
    """
    shuffled = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [shuffled[i % len(shuffled)] for i in range(-(-total // size))]
    return [dict(dataset[chosen[row // size]]) for row in rows]


def to_learn_from(
    everything: dict[str, torch.Tensor], place: torch.Tensor, ranks: Ranks, parts: int
) -> dict[str, torch.Tensor]:
    """Return this process's part of the rows that are kept, such that each can cut it into so many equal parts.

    What is missing is filled up with rows whose `place` is -1: they count for nothing.

    Args:
        place: of each row among those that are kept, -1 for none.
    """
    kept = (place >= 0).nonzero().squeeze(1)
    step = parts * ranks.count
    total = max(1, -(-len(kept) // step)) * step
    filled = torch.arange(total, device=place.device)
    index = kept[filled % len(kept)] if len(kept) else filled % len(place)
    places = place[index].masked_fill(filled >= len(kept), -1)
    own = index[ranks.mine(filled)]
    return {name: everything[name][own] for name in LEARNED_FROM} | {PLACE: ranks.mine(places)}
