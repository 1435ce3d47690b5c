"""Keep what edits of a model need later: the inverse of each layer, exact weights, and every batch's step.

The files lie in `edits/` beside the weights and are written with them as one version: `start.safetensors` (second
moments of general keys), `state.safetensors` (C and the float32 weights), a file for each batch, `facts.jsonl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from waver.job import read_lines
from waver.training.editing.facts import Fact, as_fact
from waver.training.editing.least_squares import Step

FOLDER = "edits"


@dataclass(frozen=True)
class Change:
    """One step on all layers: the facts that it wrote, or with `sign` -1 took out, and by layer keys, values and step.

    A file holds it whole, so that it is replayed, undone, or one of its facts taken out.
    """

    batch: int
    sign: int
    facts: tuple[Fact, ...]
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    steps: dict[int, Step]

    @property
    def name(self) -> str:
        return file_name(self.batch, self.sign)

    def write(self, file: Path) -> None:
        """Write it."""
        content = {}
        for layer, step in self.steps.items():
            content[f"outer.{layer}"] = step.outer.contiguous()
            content[f"inner.{layer}"] = step.inner.contiguous()
            content[f"keys.{layer}"] = self.keys[layer].contiguous()
            content[f"values.{layer}"] = self.values[layer].contiguous()
        save_file(content, file)


def file_name(batch: int, sign: int) -> str:
    """Return the file of a change."""
    return f"batch-{batch:06d}{'' if sign > 0 else '-out'}.safetensors"


@dataclass
class EditState:
    """The content of a folder of edits.

    Args:
        moments: by layer, E[k k'] of general text. inverses: by layer, C. log: a line for each fact of each change, in
            order. fresh: changes that are not written yet.
    """

    moments: dict[int, torch.Tensor]
    inverses: dict[int, torch.Tensor]
    log: list[dict[str, Any]] = field(default_factory=list)
    fresh: list[Change] = field(default_factory=list)
    live: dict[tuple[str, str | None], tuple[Fact, int, int]] = field(default_factory=dict)
    """Facts that are in the weights, in the order of their edits, by how they are asked: with batch and place in it."""

    @property
    def batches(self) -> int:
        return int(self.log[-1]["batch"]) if self.log else 0

    def add(self, change: Change) -> None:
        """Write a change into the log."""
        self.fresh.append(change)
        for place, fact in enumerate(change.facts):
            self._log({"batch": change.batch, "sign": change.sign, "place": place, "fact": fact.row()}, fact)

    def _log(self, line: dict[str, Any], fact: Fact) -> None:
        self.log.append(line)
        self.live.pop(fact.same_as, None)
        if line["sign"] > 0:
            self.live[fact.same_as] = fact, line["batch"], line["place"]

    def changes(self) -> Iterator[tuple[int, int]]:
        """Yield the batch and sign of every change, in order."""
        yield from dict.fromkeys((line["batch"], line["sign"]) for line in self.log)

    def forget_after(self, batch: int) -> None:
        """Take the changes after a batch out of the log."""
        kept = [line for line in self.log if line["batch"] <= batch]
        self.fresh = [change for change in self.fresh if change.batch <= batch]
        self.log, self.live = [], {}
        for line in kept:
            self._log(line, as_fact(line["fact"]))

    def write(self, folder: Path, weights: dict[int, torch.Tensor], before: Path) -> None:
        """Write everything into a new folder; files that stay as they are, are links to those in
        `before`."""
        folder.mkdir()
        if (before / "start.safetensors").exists():
            os.link(before / "start.safetensors", folder / "start.safetensors")
        else:
            moments = {f"moment.{layer}": value.contiguous() for layer, value in self.moments.items()}
            save_file(moments, folder / "start.safetensors")
        content = {f"inverse.{layer}": value.contiguous() for layer, value in self.inverses.items()}
        content |= {f"weight.{layer}": value.contiguous() for layer, value in weights.items()}
        save_file(content, folder / "state.safetensors")
        fresh = {change.name: change for change in self.fresh}
        for batch, sign in self.changes():
            name = file_name(batch, sign)
            if name in fresh:
                fresh[name].write(folder / name)
            else:
                os.link(before / name, folder / name)
        lines = "".join(json.dumps(line) + "\n" for line in self.log)
        (folder / "facts.jsonl").write_text(lines, encoding="utf-8")


def read(folder: Path, device: torch.device) -> tuple[EditState, dict[int, torch.Tensor]]:
    """Read a folder of edits and the weights in it, by layer.

    Raises:
        OSError: it cannot be read.
    """
    kept = load_file(folder / "state.safetensors", str(device))
    state = EditState(
        _by_layer(load_file(folder / "start.safetensors", str(device)), "moment"), _by_layer(kept, "inverse")
    )
    for line in read_lines(folder / "facts.jsonl"):
        state._log(line, as_fact(line["fact"]))
    return state, _by_layer(kept, "weight")


def read_steps(folder: Path, batch: int, sign: int, device: torch.device) -> dict[int, Step]:
    """Read the steps of a change, by layer."""
    content = load_file(folder / file_name(batch, sign), str(device))
    outer, inner = _by_layer(content, "outer"), _by_layer(content, "inner")
    return {layer: Step(outer[layer], inner[layer], sign) for layer in outer}


def read_pairs(
    folder: Path, fresh: Sequence[Change], batch: int, place: int, device: torch.device
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return the key and the value of one fact in each layer, `[1, d_k]` and `[1, d_v]`."""
    for change in fresh:
        if (change.batch, change.sign) == (batch, 1):
            keys, values = change.keys, change.values
            break
    else:
        content = load_file(folder / file_name(batch, 1), str(device))
        keys, values = _by_layer(content, "keys"), _by_layer(content, "values")
    return {layer: (keys[layer][place : place + 1], values[layer][place : place + 1]) for layer in keys}


def _by_layer(content: dict[str, torch.Tensor], kind: str) -> dict[int, torch.Tensor]:
    return {int(name.rpartition(".")[2]): value for name, value in content.items() if name.startswith(f"{kind}.")}
