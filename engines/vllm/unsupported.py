"""Refuse models that vLLM cannot run, before it is started, with a sentence in place of its own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from waver.engines.tuners import ROUTED, adapter_type

ACTIVATIONS = frozenset({"crrelu"})
"""Activations of `waver.engines.activations`, that vLLM does not have."""


def refuse_model(name: str, model: str) -> None:
    """Raise where a model in a folder needs what vLLM lacks.

    Raises:
        ValueError: the message says what, and what serves it.
    """
    settings = _settings(Path(model) / "config.json")
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        if settings.get(key) in ACTIVATIONS:
            raise ValueError(
                f"engine {name!r}: vLLM has no activation {settings[key]!r}, which {model!r} was trained with: "
                "serve it with `backend: transformers`"
            )


def refuse_adapter(name: str, adapter: str) -> None:
    """Raise where an adapter in a folder routes tokens, which vLLM's kernels for adapters cannot.

    Raises:
        ValueError: the message says what serves it.
    """
    if adapter_type(adapter) in ROUTED:
        raise ValueError(
            f"engine {name!r}: vLLM cannot route each token to parts of an adapter, as {adapter!r} needs: serve it "
            "with `backend: transformers`, the model's folder under `model` and this one under `adapter`"
        )


def _settings(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none, which vLLM tells better."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
