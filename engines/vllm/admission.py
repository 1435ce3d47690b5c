"""Check the requests of a stock `vllm serve` that ask for gates or transforms, and complete their parameters."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vllm import SamplingParams

from waver.engines.base import reason
from waver.engines.tokens import TokenText
from waver.engines.transforms import needs_geometry
from waver.engines.vllm import frames
from waver.engines.vllm.params import KEY, EncodedParams, RequestParams
from waver.engines.weights import embedding_flaw

SHARDED = "batch-sharded sampling gives each worker other requests from step to step, so none can follow one of them"

ELSEWHERE = (
    "entropies have no way to Waver from a worker on another machine; for a model across machines "
    "run `vllm serve` with Waver's plugin, and name it in Waver's configuration with `backend: openai`"
)


def admit(sampling_params: SamplingParams) -> None:
    """Check what a request asks of the plugin, and replace it by parameters for the worker. vLLM calls this at
    admission, also for requests that ask for nothing.

    Raises:
        ValueError: the request cannot be served; vLLM answers 400 with the message.
    """
    extra = sampling_params.extra_args or {}
    if KEY not in extra or isinstance(extra[KEY], EncodedParams):
        return
    params = RequestParams.from_client(extra[KEY])
    front = frames.input_processor()
    if front is None:
        raise ValueError(f"{KEY}: this version of vLLM checks requests in a way that the plugin does not know")
    _check_server(front, params, sampling_params)
    try:
        tokens = load_tokens(front.model_config, front.generation_config_fields)
    except ValueError as error:
        raise ValueError(f"{KEY}: {error}") from error
    if params.gate is not None:
        stop = reserved_token(tokens, front.model_config.get_vocab_size())
        sampling_params.stop_token_ids = [*(sampling_params.stop_token_ids or []), stop]
        sampling_params._all_stop_token_ids.add(stop)
        floor = max(params.gate.min_tokens, sampling_params.min_tokens)
        params = replace(params, stop=stop, gate=replace(params.gate, min_tokens=floor))
    if needs_geometry(params.transforms):
        model = front.model_config
        # In the worker it would end every request.
        if flaw := embedding_flaw(model.model, model.revision, model.get_vocab_size()):
            raise ValueError(f"{KEY}.transforms: top_w needs the model's embeddings, and {flaw}")
    params = replace(params, temperature=sampling_params.temperature, tag=secrets.randbits(31))
    extra[KEY] = params.encode()


def _check_server(front: Any, params: RequestParams, sampling_params: SamplingParams) -> None:
    """Check that the server's mode and the request's other options allow gates and transforms.

    Raises:
        ValueError: they do not.
    """
    if front.speculative_config is not None:
        raise ValueError(
            f"{KEY}: gates and transforms do not work with speculative decoding, which reads several positions at "
            "once; start the server without --speculative-config"
        )
    if front.vllm_config.parallel_config.enable_batch_sharded_sampling:
        raise ValueError(f"{KEY}: {SHARDED}")
    if params.gate is not None and sampling_params.structured_outputs is not None:
        raise ValueError(
            f"{KEY}: a gate and structured outputs do not go together: the token that ends a request when its gate "
            "fires is none that the grammar allows"
        )


def reserved_token(tokens: TokenText, vocabulary: int) -> int:
    """Choose the token that ends a request whose gate fired, one that no text needs: an id that pads the output layer
    where there is one, else a control token that ends nothing and that the output layer has.

    Raises:
        ValueError: every id of this model has a use.
    """
    if vocabulary > tokens.vocab_size:
        return tokens.vocab_size
    spare = [tokens.tokenizer.pad_token_id, tokens.tokenizer.unk_token_id, tokens.tokenizer.bos_token_id]
    for token in (*spare, *sorted(tokens.tokenizer.added_tokens_decoder)):
        if token is not None and token < vocabulary and token not in tokens.eos_ids and tokens.is_special(token):
            return int(token)
    raise ValueError("this model's tokenizer has no spare control token to end a request with, so gates cannot be used")


def load_tokens(model: Any, generation: Mapping[str, Any] | None) -> TokenText:
    """Load the tokenizer of a model, from vLLM's configurations of it.

    Raises:
        ValueError: there is none that could be used, and so no gates or transforms.
    """
    ends = (generation or {}).get("eos_token_id")
    ends = tuple(ends) if isinstance(ends, list) else ends
    try:
        return _loaded(model.tokenizer, ends, model.tokenizer_revision, model.trust_remote_code)
    except Exception as error:  # transformers and the tokenizers each raise their own kinds
        raise ValueError(f"gates and transforms need the model's tokenizer: {reason(error)}") from error


@lru_cache(maxsize=4)
def _loaded(source: str, ends: int | tuple[int, ...] | None, revision: str | None, trusted: bool) -> TokenText:
    return TokenText.load(source, ends, revision=revision, trust_remote_code=trusted)
