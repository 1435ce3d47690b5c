"""One interface over several ways to run a model. `load_engine` makes an engine from its configuration, `load_adapter`
makes one for an adapter on the model of another engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waver.engines.config import EngineConfig, LoraConfig, ModelConfig, TransformersConfig, UpstreamConfig, VllmConfig

if TYPE_CHECKING:
    # Brings torch, which whoever reads a configuration has no need of.
    from waver.engines.base import Engine

__all__ = [
    "EngineConfig",
    "LoraConfig",
    "ModelConfig",
    "TransformersConfig",
    "UpstreamConfig",
    "VllmConfig",
    "load_adapter",
    "load_engine",
]


def load_engine(name: str, config: ModelConfig) -> Engine:
    """Load the model, or connect to it (blocking: run it in a thread).

    Raises:
        ValueError: the model cannot be loaded; the message says why and what to do.
    """
    match config:
        case TransformersConfig():
            from waver.engines.transformers import TransformersEngine

            return TransformersEngine(name, config)
        case VllmConfig():
            from waver.engines.vllm.loading import load

            return load(name, config)
        case UpstreamConfig():
            from waver.engines.upstream import UpstreamEngine

            return UpstreamEngine(name, config)


async def load_adapter(name: str, config: LoraConfig, base: Engine) -> Engine:
    """Load an adapter beside the model of an engine that is loaded; on the event loop that requests will run in.

    Raises:
        ValueError: the adapter cannot be loaded; the message says why.
    """
    from waver.engines.vllm.engine import VllmEngine

    if not isinstance(base, VllmEngine):
        raise ValueError(f"engine {name!r}: {base.name!r} does not run under vLLM, and only there are adapters loaded")
    return await base.with_adapter(name, config.model)
