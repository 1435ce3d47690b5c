"""Models behind an OpenAI-compatible server somewhere else: `vllm serve`, Waver, llama.cpp, SGLang, …"""

from waver.engines.upstream.engine import UpstreamEngine

__all__ = ["UpstreamEngine"]
