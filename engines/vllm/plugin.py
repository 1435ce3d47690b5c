"""The logits processor that vLLM loads, found by the entry-point group `vllm.logits_processors`.

Waver's own engine has it in its workers by the same way as a stock `vllm serve`.
"""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor

from waver.engines.vllm.adapters import V1Adapter, V2Adapter
from waver.engines.vllm.admission import admit


class WaverProcessor(V1Processor, V2Processor):  # type: ignore[misc]
    """Serves both of vLLM's model runners: made with V1's arguments it becomes V1's adapter, made with V2's arguments
    V2's."""

    def __new__(cls, vllm_config: Any, *where: Any) -> Any:
        return V1Adapter(vllm_config, *where) if len(where) == 2 else V2Adapter(vllm_config, *where)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check what a request asks of the plugin, and complete it.

        Raises:
            ValueError: the request cannot be served; vLLM answers 400 with the message.
        """
        admit(sampling_params)
