"""A probe: a small network that reads a model's hidden state and names a class (DiffAdapt, arXiv 2510.19669).

A folder with `probe.safetensors` and `probe.json` (the `Record`). One fits one model and one chat template: it carries
a reference prompt with the hidden state that its model has there, and is refused where the engine's differs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from waver.engines.base import Engine, Unsupported, reason

Class = Literal["easy", "normal", "hard"]
CLASSES: tuple[Class, ...] = ("easy", "normal", "hard")
"""What the three outputs stand for, in order."""
ALIKE = 0.99
"""Cosine from which two hidden states are taken for one model's; bfloat16 and int8 weights stay above it."""
RECENT = 100
"""Questions from which it is guessed what the next one will be taken for."""
REFERENCE = "What is 27 + 58 - 13?"
"""The user message at whose end the reference state is taken."""


class Record(BaseModel):
    """What a probe is for, and how it came about.

    `words` open the assistant's turn, after the generation prompt: the hidden state at their last token is what is
    read. `labels` names the rule of its classes, `thresholds` their alpha, beta (nats) and gamma. `about` is for
    people: questions, samples, scores.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    words: str
    labels: str
    thresholds: dict[str, float] = {}
    about: dict[str, Any] = {}


@dataclass(frozen=True)
class Probe:
    """logits = W2 relu(W1 h + b1) + b2, with W1 `[width, hidden]` and W2 `[3, width]`, float32.

    `ids` and `state` are the reference: a prompt as the chat template makes it, `words` included, and the `[hidden]`
    state at its end.
    """

    weights: Mapping[str, torch.Tensor]
    record: Record
    ids: tuple[int, ...]
    state: torch.Tensor
    chosen: deque[Class] = field(default_factory=lambda: deque(maxlen=RECENT), repr=False, compare=False)
    """What was made of the last questions that it was asked about."""
    _known: dict[int, tuple[Engine, str | None]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def hidden(self) -> int:
        return self.weights["W1"].shape[1]

    @property
    def usual(self) -> Class | None:
        """What at least half of the last questions were taken for, if any class; normal before there were any."""
        if not self.chosen:
            return "normal"
        ((most, count),) = Counter(self.chosen).most_common(1)
        return most if 2 * count >= len(self.chosen) else None

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """Logits of the classes: `[..., 3]` for hidden states `[..., hidden]`."""
        first = torch.relu(state.float() @ self.weights["W1"].T + self.weights["b1"])
        return first @ self.weights["W2"].T + self.weights["b2"]

    def save(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {**self.weights, "reference": self.state, "reference_ids": torch.tensor(self.ids)}
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "probe.safetensors")
        (folder / "probe.json").write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Raises:
        ValueError: there is no probe, or it is damaged."""
        try:
            record = Record.model_validate_json((folder / "probe.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "probe.safetensors")
            weights = {name: tensors[name] for name in ("W1", "b1", "W2", "b2")}
            ids, state = tuple(tensors["reference_ids"].tolist()), tensors["reference"]
        except FileNotFoundError as error:
            raise ValueError(f"{folder} holds no probe: {Path(error.filename).name} is missing") from error
        except (ValidationError, SafetensorError, KeyError, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"the probe in {folder} cannot be read: {reason(error)}") from error
        width, hidden = weights["W1"].shape if weights["W1"].ndim == 2 else (0, 0)
        shapes = {"W1": (width, hidden), "b1": (width,), "W2": (len(CLASSES), width), "b2": (len(CLASSES),)}
        if not width or any(tuple(weights[n].shape) != s for n, s in shapes.items()) or tuple(state.shape) != (hidden,):
            raise ValueError(f"the probe in {folder} cannot be read: its tensors do not fit together")
        return cls(weights, record, ids, state)

    async def check(self, engine: Engine) -> None:
        """See once for each engine that it runs the model and template this probe was trained on.

        Raises:
            Unsupported: it does not, or does not hand out hidden states.
        """
        known, reason = self._known.get(id(engine), (None, None))
        if known is not engine:
            reason = await self._misfit(engine)
            self._known[id(engine)] = (engine, reason)
        if reason is not None:
            raise Unsupported(reason, "policy")

    async def _misfit(self, engine: Engine) -> str | None:
        """Why this probe cannot read an engine; None: it can."""
        if "hidden_state" not in engine.exposes:
            return f"engine {engine.name!r} does not hand out hidden states, which a probe reads"
        if reference_ids(engine, self.record.words) != self.ids:
            return f"this probe was trained with another chat template or tokenizer than that of engine {engine.name!r}"
        state = await engine.hidden_state(self.ids)
        if state.shape != self.state.shape or torch.cosine_similarity(state, self.state, dim=0) < ALIKE:
            return f"this probe was trained on {self.record.model}, which engine {engine.name!r} does not run"
        return None


def reference_ids(engine: Engine, words: str) -> tuple[int, ...]:
    """The reference prompt as an engine's template makes it, with a probe's words (think tags and all) behind it.

    Raises:
        Unsupported: the model has no chat template.
    """
    try:
        prompt = engine.tokens.chat([{"role": "user", "content": REFERENCE}])
    except ValueError as error:
        raise Unsupported(str(error), "policy") from error
    return (*prompt, *engine.tokens.encode(words, add_special_tokens=False))
