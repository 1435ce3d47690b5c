"""The vLLM engine for speculative decoding.

vLLM's logits processors see no single positions then, so vLLM draws by itself, gates are refused, and entropies are
bounded by the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import torch

from waver.engines.base import EngineError, Finish, Sampling, Step, Unsupported
from waver.engines.vllm.core import Running
from waver.engines.vllm.engine import VllmEngine
from waver.engines.vllm.ring import TOP


class SpeculativeVllmEngine(VllmEngine):
    """Serves plain requests, and refuses what speculative decoding does not allow."""

    def _check_supported(self, sampling: Sampling, begun: bool) -> None:
        refused = {
            "policy": (
                sampling.gate is not None or bool(sampling.transforms),
                "a gate or a policy that shapes the draw",
            ),
            "logit_bias": (bool(sampling.logit_bias), "logit_bias"),
            "allowed_token_ids": (bool(sampling.allowed_token_ids), "allowed_token_ids"),
            "bad_words": (bool(sampling.bad_words), "bad_words"),
            "min_p": (sampling.min_p > 0, "min_p"),
            "response_format": (sampling.grammar is not None, "a response format"),
            "presence_penalty": (
                begun and bool(sampling.presence_penalty or sampling.frequency_penalty),
                "a penalty that counts what another engine wrote",
            ),
        }
        for param, (wanted, what) in refused.items():
            if wanted:
                raise Unsupported(f"engine {self.name!r} decodes speculatively, which does not allow {what}", param)

    async def _prepare(self, ids: Sequence[int], sampling: Sampling) -> None:
        self._check_supported(sampling, begun=sampling.answer_start is not None and sampling.answer_start < len(ids))

    async def _decode(self, running: Running, ids: list[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        start = len(ids) if sampling.answer_start is None else sampling.answer_start
        written = len(ids) - start
        ends = self._ends(sampling)
        limit = self._limit(sampling, len(ids), start)
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=(sampling.seed + written) % 2**63,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=limit,
            min_tokens=min(max(sampling.min_tokens - written, 0), limit),
            stop_token_ids=sorted(set(ends)),
            ignore_eos=True,
            logprobs=TOP,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
        made = 0
        async with aclosing(self._outputs(running, ids, params, written > 0, sampling.pictures)) as outputs:
            async for output in outputs:
                completion = output.outputs[0]
                for token, known in zip(completion.token_ids, completion.logprobs, strict=True):
                    made += 1
                    step = self._bounded(token, known, sampling.top_logprobs)
                    finish: Finish | None = "stop" if token in ends else "length" if made == limit else None
                    yield replace(step, finish=finish)
                    if finish:
                        return
        raise EngineError(f"engine {self.name!r} ended an answer without a reason")

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        """Refuse: the worker of a vLLM that speculates does not hand out hidden states.

        Raises:
            Unsupported: always.
        """
        if depth is not None:
            raise Unsupported(
                f"engine {self.name!r} runs under vLLM, which hands out the last hidden state only", "policy"
            )
        raise Unsupported(f"engine {self.name!r} decodes speculatively, which does not allow hidden states", "policy")
