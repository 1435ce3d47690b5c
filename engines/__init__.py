"""One interface over several ways to run a model. `load_engine` makes an engine from its configuration, `load_adapter`
makes one for an adapter on the model of another engine."""

from __future__ import annotations

from pathlib import Path
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
    return _with_template(_load(name, config), config)


def _load(name: str, config: ModelConfig) -> Engine:
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


def _with_template(engine: Engine, config: EngineConfig) -> Engine:
    """Give an engine the chat template of its configuration, if there is one.

    Raises:
        ValueError: it cannot be read, or is no template.
    """
    if config.chat_template is not None:
        from waver.engines.vision import vision_of

        try:
            source = Path(config.chat_template).expanduser().read_text(encoding="utf-8")
            engine.tokens = engine.tokens.with_template(source)
            if (vision := vision_of(engine)) is not None:
                engine.vision = vision.with_tokens(engine.tokens)  # type: ignore[attr-defined]
        except (OSError, ValueError) as error:
            raise ValueError(f"engine {engine.name!r}: chat_template {config.chat_template!r}: {error}") from error
    return engine


async def load_adapter(name: str, config: LoraConfig, base: Engine) -> Engine:
    """Load an adapter beside the model of an engine that is loaded; on the event loop that requests will run in.

    Raises:
        ValueError: the adapter cannot be loaded; the message says why.
    """
    from waver.engines.vllm.engine import VllmEngine

    if not isinstance(base, VllmEngine):
        raise ValueError(f"engine {name!r}: {base.name!r} does not run under vLLM, and only there are adapters loaded")
    return _with_template(await base.with_adapter(name, config.model), config)
