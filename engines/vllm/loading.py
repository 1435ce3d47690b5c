"""Start a model under vLLM, and choose the engine for it."""

from __future__ import annotations

from waver.engines.config import VllmConfig
from waver.engines.vllm.engine import VllmEngine
from waver.engines.vllm.exact import ExactVllmEngine
from waver.engines.vllm.model import VllmModel
from waver.engines.vllm.speculative import SpeculativeVllmEngine
from waver.engines.vllm.unsupported import refuse_model


def load(name: str, config: VllmConfig) -> VllmEngine:
    """Start vLLM (blocking: run it in a thread), and make the engine that fits how it decodes.

    Raises:
        ValueError: vLLM cannot start the model; the message says why.
    """
    refuse_model(name, config.model)
    model = VllmModel(name, config)
    engine = (SpeculativeVllmEngine if model.speculates else ExactVllmEngine)(name, model)
    model.core.warm_up = engine.warm_up
    return engine
