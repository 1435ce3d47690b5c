"""One interface over several ways to run a model. `load_engine` makes an engine from its configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engines.base import Engine


class EngineConfig(BaseModel):
    """How to run one model. `model` is a directory or a hub id, as transformers loads them."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    backend: Literal["transformers"] = "transformers"
    model: str
    device: str = Field(default="auto", description="`auto` (CUDA where present), `cpu`, `cuda`, `cuda:1`, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    threads: int | None = Field(default=None, ge=1, description="CPU threads of a pass; default: 1 for small models")
    max_sequences: int = Field(default=64, ge=1, description="sequences decoded together, and KV caches kept")
    max_model_len: int | None = Field(default=None, ge=2, description="context length, at most the model's own")


def load_engine(name: str, config: EngineConfig) -> Engine:
    """Load the model (blocking: run it in a thread).

    Raises:
        ValueError: the model cannot be loaded; the message says why and what to do.
    """
    from engines.transformers import TransformersEngine

    return TransformersEngine(name, config)
