"""A probe: a small network that classifies a prompt by a model's hidden state.

It is a folder with `probe.safetensors` and `probe.json` (the `Record`). A probe fits one model and one chat template:
it carries a reference prompt with the hidden state that its model has there, and is refused where the engine's differs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from waver.engines.base import Engine, Unsupported, reason
from waver.engines.metering import unmetered

ALIKE = 0.99
"""Least cosine of two hidden states of one model; bfloat16 and int8 weights stay above it."""
RECENT = 100
"""Number of the last classes that are kept."""
REFERENCE = "What is 27 + 58 - 13?"
"""The user message at whose end the reference state is taken."""


class Record(BaseModel):
    """The purpose of a probe and its training.

    `words` open the assistant's turn, after the generation prompt: the probe reads the hidden state at their last
    token. `labels` names the rule of its classes, `thresholds` their alpha, beta (nats) and gamma. `classes` are the
    names of its outputs, in order; files of the first version have none. `about` is for people: questions, samples,
    scores.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    words: str
    labels: str
    thresholds: dict[str, float] = {}
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = {}


@dataclass(frozen=True)
class Probe:
    """logits = W2 relu(W1 h + b1) + b2, with W1 `[width, hidden]` and W2 `[classes, width]`, float32.

    `ids` and `state` are the reference: a prompt as the chat template makes it, `words` included, and the `[hidden]`
    state at its end.
    """

    weights: Mapping[str, torch.Tensor]
    record: Record
    ids: tuple[int, ...]
    state: torch.Tensor
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT), repr=False, compare=False)
    """The classes that were chosen for the last prompts."""
    _known: dict[int, tuple[Engine, str | None]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return self.weights["W1"].shape[1]

    @property
    def outputs(self) -> int:
        """Number of classes."""
        return self.weights["W2"].shape[0]

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the classes: `[..., classes]` for hidden states `[..., hidden]`."""
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
        """Read the folder.

        Raises:
            ValueError: there is no probe, or it is damaged.
        """
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
        outputs = len(record.classes) or weights["b2"].numel()
        shapes = {"W1": (width, hidden), "b1": (width,), "W2": (outputs, width), "b2": (outputs,)}
        fit = all(tuple(weights[name].shape) == shape for name, shape in shapes.items())
        if not (width and outputs and fit and tuple(state.shape) == (hidden,)):
            raise ValueError(f"the probe in {folder} cannot be read: its tensors do not fit together")
        return cls(weights, record, ids, state)

    async def check(self, engine: Engine) -> None:
        """Check, once for each engine, that it runs the model and template that this probe was trained on.

        Raises:
            Unsupported: it does not, or does not hand out hidden states.
        """
        engine = unmetered(engine)
        known, reason = self._known.get(id(engine), (None, None))
        if known is not engine:
            reason = await self._misfit(engine)
            self._known[id(engine)] = (engine, reason)
        if reason is not None:
            raise Unsupported(reason, "policy")

    async def _misfit(self, engine: Engine) -> str | None:
        """Explain why this probe cannot read an engine; None where it can."""
        if "hidden_state" not in engine.exposes:
            return f"engine {engine.name!r} does not hand out hidden states, which a probe reads"
        if reference_ids(engine, self.record.words) != self.ids:
            return f"this probe was trained with another chat template or tokenizer than that of engine {engine.name!r}"
        state = await engine.hidden_state(self.ids)
        if state.shape != self.state.shape or torch.cosine_similarity(state, self.state, dim=0) < ALIKE:
            return f"this probe was trained on {self.record.model}, which engine {engine.name!r} does not run"
        return None


def reference_ids(engine: Engine, words: str) -> tuple[int, ...]:
    """Encode the reference prompt by an engine's chat template, followed by a probe's words (think tags included).

    Raises:
        Unsupported: the model has no chat template.
    """
    try:
        prompt = engine.tokens.chat([{"role": "user", "content": REFERENCE}])
    except ValueError as error:
        raise Unsupported(str(error), "policy") from error
    return (*prompt, *engine.tokens.encode(words, add_special_tokens=False))
