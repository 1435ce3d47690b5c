"""Tell models apart by the entropies that they have on a fixed prompt.

What is learned from a model's entropies or answers fits that model alone; its fingerprint goes with it.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

import numpy as np
from pydantic import BaseModel, ConfigDict

from waver.engines.base import Engine, Unsupported
from waver.engines.metering import unmetered

ALIKE = 0.05
"""Mean difference (nats) up to which two engines' entropies of the reference prompt count as those of one model."""
REFERENCE = "What is 27 + 58 - 13? Name the capital of France, and a colour that you like."
"""The user message whose tokens' entropies tell models apart."""


class Fingerprint(BaseModel):
    """The reference prompt as an engine's chat template makes it, and the entropies (nats) of its tokens from the
    second on; none where the engine cannot score a text."""

    model_config = ConfigDict(extra="forbid")

    ids: tuple[int, ...]
    entropies: tuple[float, ...] = ()

    def unlike(self, other: Fingerprint) -> str | None:
        """Tell how another engine differs; None where it runs the same model."""
        if self.ids != other.ids:
            return "another chat template or tokenizer"
        if len(self.entropies) != len(other.entropies):
            return "another engine, which measures differently"
        gap = float(np.mean(np.abs(np.subtract(self.entropies, other.entropies)))) if self.entropies else 0.0
        return "another model" if gap > ALIKE else None


_MEASURED: WeakValueDictionary[int, Engine] = WeakValueDictionary()
_FINGERPRINTS: dict[int, Fingerprint] = {}
"""Fingerprints of the engines that were measured, by id."""


async def fingerprint(engine: Engine) -> Fingerprint:
    """Measure the reference prompt, once for each engine.

    Raises:
        EngineError: the engine is dead.
    """
    engine = unmetered(engine)
    if _MEASURED.get(id(engine)) is not engine:
        _FINGERPRINTS[id(engine)] = await _measure(engine)
        _MEASURED[id(engine)] = engine
    return _FINGERPRINTS[id(engine)]


async def _measure(engine: Engine) -> Fingerprint:
    message = [{"role": "user", "content": REFERENCE}]
    try:
        ids = tuple(engine.tokens.chat(message))
    except ValueError:  # no chat template
        ids = tuple(engine.tokens.encode(REFERENCE))
    try:
        return Fingerprint(ids=ids, entropies=tuple(step.entropy for step in await engine.score(ids)))
    except Unsupported:
        return Fingerprint(ids=ids)
