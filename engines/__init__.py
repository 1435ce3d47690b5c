"""One interface over several ways to run a model. `load_engine` makes an engine from its configuration."""

from __future__ import annotations

from engines.base import Engine
from engines.config import EngineConfig, TransformersConfig, UpstreamConfig, VllmConfig

__all__ = ["EngineConfig", "TransformersConfig", "UpstreamConfig", "VllmConfig", "load_engine"]


def load_engine(name: str, config: EngineConfig) -> Engine:
    """Load the model, or connect to it (blocking: run it in a thread).

    Raises:
        ValueError: the model cannot be loaded; the message says why and what to do.
    """
    match config:
        case TransformersConfig():
            from engines.transformers import TransformersEngine

            return TransformersEngine(name, config)
        case VllmConfig():
            from engines.vllm.engine import VllmEngine

            return VllmEngine(name, config)
        case UpstreamConfig():
            from engines.upstream import UpstreamEngine

            return UpstreamEngine(name, config)
