"""The plugin as vLLM loads it and asks it: at admission, in the worker of either runner, and in a group of workers."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.engines.vllm.reference import KNOWN
from tests.engines.vllm_here import needs_vllm
from waver.engines.base import Gate, Sampling
from waver.engines.sampling import Row, draw
from waver.engines.tokens import TokenText
from waver.engines.vllm.lifeline import set_lifeline
from waver.engines.vllm.params import KEY, RequestParams
from waver.engines.vllm.ring import EntropyRing, ring_path, set_ring_path

if needs_vllm.args[0]:
    pytest.skip(needs_vllm.kwargs["reason"], allow_module_level=True)

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality, build_logitsprocs
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.worker.gpu.sample.logits_processor import (
    build_custom_logits_processors,
    build_custom_logits_processors_params_validator,
)

from waver.engines.vllm.adapters import V1Adapter, V2Adapter, whiten_on
from waver.engines.vllm.admission import reserved_token
from waver.engines.vllm.plugin import WaverProcessor
from waver.engines.weights import embedding_flaw
from waver.entropy.geometry import whiten

CPU = torch.device("cpu")
RULE = {"threshold": 0.7, "window": 3}
LOADERS = ("V1", "V2")


@pytest.fixture
def admit(configure: Callable[..., Any]) -> Callable[..., SamplingParams]:
    """Pass a request's parameters through the frontend of a server whose plugins either loader has found."""

    def one(loader: str, params: SamplingParams, vocabulary: int = KNOWN, **options: Any) -> SamplingParams:
        front = InputProcessor(configure(vocabulary, **options))
        if loader == "V2":
            front.validate_logits_processors_params = build_custom_logits_processors_params_validator(None)
        request = front.process_inputs("request", tokens_input([5, 6, 7]), params, ("generate",))
        arrived = MsgpackDecoder(type(request)).decode(MsgpackEncoder().encode(request)).params
        assert isinstance(arrived, SamplingParams)
        return arrived

    return one


def asking(**wanted: Any) -> SamplingParams:
    return SamplingParams(max_tokens=9, extra_args={KEY: json.dumps(wanted), "other": 1})


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("vocabulary", "stop"), [(KNOWN, 0), (KNOWN + 10, KNOWN)])
def test_a_gate_is_settled_at_admission(loader: str, vocabulary: int, stop: int, admit: Callable[..., Any]) -> None:
    params = asking(gate={**RULE, "min_tokens": 2})
    params.stop_token_ids, params.min_tokens, params.temperature = [9], 5, 0.5
    arrived = admit(loader, params, vocabulary)
    wanted = RequestParams.decode(arrived.extra_args[KEY])
    assert wanted == RequestParams(Gate(3, 0.7, min_tokens=5), temperature=0.5, stop=stop, tag=wanted.tag)
    assert arrived.stop_token_ids == [9, stop]
    assert stop in arrived.all_stop_token_ids  # vLLM bars it before `min_tokens`
    assert arrived.extra_args["other"] == 1
    assert RequestParams.decode(admit(loader, asking(gate=RULE), vocabulary).extra_args[KEY]).tag != wanted.tag


@pytest.mark.parametrize("loader", LOADERS)
def test_a_truncation_reserves_no_token(loader: str, admit: Callable[..., Any]) -> None:
    arrived = admit(loader, asking(transforms=[{"name": "top_h"}]))
    assert RequestParams.decode(arrived.extra_args[KEY]).stop is None
    assert not arrived.stop_token_ids


@pytest.mark.parametrize("loader", LOADERS)
def test_who_asks_for_nothing_is_left_alone(loader: str, admit: Callable[..., Any]) -> None:
    for extra in (None, {"other": 1}):
        arrived = admit(loader, SamplingParams(max_tokens=9, extra_args=extra))
        assert arrived.extra_args == extra
        assert not arrived.stop_token_ids


@pytest.mark.parametrize("loader", LOADERS)
def test_our_own_engines_asks_pass_as_they_are(loader: str, admit: Callable[..., Any]) -> None:
    wanted = RequestParams(Gate(2000, 1.0), Sampling(seed=3), ends=(2,), stop=2, slot=5, tag=77)
    params = SamplingParams(temperature=0.0, max_tokens=9, extra_args={KEY: wanted.encode()}, skip_clone=True)
    assert RequestParams.decode(admit(loader, params).extra_args[KEY]) == replace(
        wanted, sampling=Sampling(seed=3, gate=wanted.gate)
    )


@pytest.mark.parametrize("loader", LOADERS)
def test_parameters_that_are_used_again_are_settled_once(loader: str, admit: Callable[..., Any]) -> None:
    params = asking(gate=RULE)
    first, second = admit(loader, params), admit(loader, params)
    assert first.stop_token_ids == second.stop_token_ids == [0]
    assert first.extra_args == second.extra_args


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("{", "waver: not valid JSON"),
        (json.dumps({"gate": {"threshold": 1}}), "waver.gate.window is required"),
        (json.dumps({"settled": "{}"}), "there is no settled"),
        ({"settled": json.dumps({"stop": 10**9, "slot": 10**9})}, "there is no settled"),
        (7, "should be a JSON object"),
    ],
)
def test_what_cannot_be_asked_is_refused(loader: str, wanted: Any, says: str, admit: Callable[..., Any]) -> None:
    with pytest.raises(VLLMValidationError, match=re.escape(says)) as raised:
        admit(loader, SamplingParams(max_tokens=9, extra_args={KEY: wanted}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loader", LOADERS)
def test_embeddings_that_cannot_be_whitened_are_refused(
    loader: str, checkpoint: Callable[[int], Path], admit: Callable[..., Any]
) -> None:
    """The worker would meet them in the middle of everybody's step."""
    file, transforms = checkpoint(KNOWN + 3) / "model.safetensors", [{"name": "top_w"}]
    whole = load_file(file)["model.embed_tokens.weight"]
    broken = whole.clone()
    broken[7] = torch.nan
    for name, matrix, says in (
        ("embed_tokens.weight", broken, "not finite"),
        ("embed_tokens.weight", whole[:-1], f"for {KNOWN + 3} tokens"),
        ("table", whole, "no embedding matrix"),
    ):
        save_file({name: matrix}, file)
        embedding_flaw.cache_clear()
        with pytest.raises(VLLMValidationError, match=f"top_w needs the model's embeddings, and .*{says}"):
            admit(loader, asking(transforms=transforms), KNOWN + 3)
        admit(loader, asking(transforms=[{"name": "top_w", "geometry_scale": 0.0}]), KNOWN + 3)
    save_file({"model.embed_tokens.weight": whole}, file)
    embedding_flaw.cache_clear()
    admit(loader, asking(transforms=transforms), KNOWN + 3)


def test_a_device_without_room_leaves_the_embeddings_with_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, tried = torch.randn(50, 6), list[int]()

    def cramped(rows: torch.Tensor) -> torch.Tensor:
        tried.append(len(rows))
        if len(tried) == 1:
            raise torch.OutOfMemoryError
        return whiten(rows)

    monkeypatch.setattr("waver.engines.vllm.adapters.whiten", cramped)
    assert torch.equal(whiten_on(matrix, CPU), whiten(matrix))
    assert tried == [50, 50]


@pytest.mark.parametrize("loader", LOADERS)
def test_what_cannot_work_is_refused(loader: str, admit: Callable[..., Any]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    speculation = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    for wanted in ({"gate": RULE}, {"transforms": [{"name": "top_h"}]}):
        with pytest.raises(VLLMValidationError, match="do not work with speculative decoding"):
            admit(loader, asking(**wanted), speculative=json.dumps(speculation))
    admit(loader, SamplingParams(max_tokens=9), speculative=json.dumps(speculation))
    params = asking(gate=RULE)
    params.structured_outputs = StructuredOutputsParams(json={"type": "object"})
    with pytest.raises(VLLMValidationError, match="a gate and structured outputs do not go together"):
        admit(loader, params)
    params = asking(transforms=[{"name": "top_h"}])
    params.structured_outputs = StructuredOutputsParams(json={"type": "object"})
    admit(loader, params)


def test_no_body_that_a_server_reads_makes_a_settled_ask(admit: Callable[..., Any]) -> None:
    """Neither what the OpenAI endpoints take as `vllm_xargs`, nor what the token endpoint takes for parameters."""
    from pydantic import ValidationError
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

    settled = RequestParams(Gate(3, 0.7), stop=10**9, slot=10**9).encode()
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(ValidationError, match="vllm_xargs"):
        ChatCompletionRequest(**body, vllm_xargs={KEY: dict(settled)})
    chat = ChatCompletionRequest(**body, vllm_xargs={KEY: json.dumps(settled)}).to_sampling_params(9, {})
    raw = GenerateRequest(token_ids=[1], sampling_params={"max_tokens": 9, "extra_args": {KEY: dict(settled)}})
    for params in (chat, raw.sampling_params):
        with pytest.raises(VLLMValidationError, match="there is no settled"):
            admit("V1", params)


def test_both_loaders_make_the_adapter_of_their_runner(configure: Callable[..., Any]) -> None:
    config = configure(KNOWN)
    loaded = build_logitsprocs(config, CPU, False, False, ())
    assert [type(each) for each in loaded.non_argmax_invariant][-1] is V1Adapter
    states: Any = SimpleNamespace(
        device=CPU, max_num_reqs=4, vocab_size=KNOWN, all_token_ids=None, prompt_len=None, prefill_len=None,
        total_len=None,
    )  # fmt: skip
    (made,) = build_custom_logits_processors(config, states, False)
    assert type(made) is V2Adapter
    assert not build_custom_logits_processors(config, states, True)  # models that pool have nothing to process


def test_under_speculation_the_worker_does_nothing(configure: Callable[..., Any]) -> None:
    speculation = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    config = configure(KNOWN, speculative=json.dumps(speculation))
    assert not any(isinstance(each, V1Adapter) for each in build_logitsprocs(config, CPU, False, False, ()).all)
    states: Any = SimpleNamespace(max_num_reqs=4, device=CPU)
    adapter = WaverProcessor(config, states)
    params = SamplingParams(extra_args={KEY: RequestParams(Gate(1, 0.0), stop=0).encode()})
    assert adapter.add_request(0, params) is False
    logits = torch.randn(3, KNOWN)
    assert adapter.apply(logits, SimpleNamespace()) is logits


def test_a_model_without_a_tokenizer_is_served_to_who_asks_for_nothing(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    config = copy.deepcopy(configure(KNOWN))
    config.model_config.tokenizer, config.model_config.skip_tokenizer_init = str(tmp_path), True
    front = InputProcessor(config)
    for wanted in ({"gate": RULE}, {"transforms": [{"name": "top_h"}]}):
        with pytest.raises(VLLMValidationError, match="waver: gates and transforms need the model's tokenizer: "):
            front.process_inputs("request", tokens_input([5]), asking(**wanted), ("generate",))
    front.process_inputs("request", tokens_input([5]), SamplingParams(max_tokens=9), ("generate",))
    logits = torch.randn(3, KNOWN)
    first, *others = V1Adapter(config, CPU, False), WaverProcessor(config, SimpleNamespace(max_num_reqs=4, device=CPU))
    first.update_state(BatchUpdate(1, [], [(0, SamplingParams(), [5], [])], []))
    assert first.apply(logits) is logits
    for each in others:
        assert each.add_request(0, SamplingParams()) is False
        assert each.apply(logits, SimpleNamespace()) is logits


def test_sharded_sampling_is_refused_at_the_start(configure: Callable[..., Any], tmp_path: Path) -> None:
    """Waver's engine reports from one worker, which then sees only its share of the requests."""
    config = configure(KNOWN, tmp_path / "ring")
    sharded = SimpleNamespace(
        model_config=config.model_config, scheduler_config=config.scheduler_config, speculative_config=None,
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=True), additional_config={},
    )  # fmt: skip
    set_ring_path(sharded, tmp_path / "ring")
    with pytest.raises(ValueError, match="batch-sharded sampling"):
        V1Adapter(sharded, CPU, False)


def test_the_board_does_not_change_the_key_of_the_compile_cache(configure: Callable[..., Any], tmp_path: Path) -> None:
    """And it arrives with the worker, which vLLM starts by spawn, and copies what it gets for a vision model's text."""
    plain, one, other = configure(KNOWN), configure(KNOWN, tmp_path / "one"), configure(KNOWN, tmp_path / "other")
    assert plain.compute_hash() == one.compute_hash() == other.compute_hash()
    set_lifeline(one, SimpleNamespace())  # type: ignore[arg-type]
    assert plain.compute_hash() == one.compute_hash()
    assert one.with_hf_config(one.model_config.hf_config).additional_config == plain.additional_config
    assert [ring_path(pickle.loads(pickle.dumps(each))) for each in (plain, one)] == [None, tmp_path / "one"]


def test_a_worker_on_another_machine_says_so(configure: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on another machine"):
        V1Adapter(configure(KNOWN, tmp_path / "far"), CPU, False)


def test_sharded_sampling_is_refused_at_admission(
    configure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    front = InputProcessor(configure(KNOWN))
    monkeypatch.setattr(front.vllm_config.parallel_config, "enable_batch_sharded_sampling", True)
    with pytest.raises(VLLMValidationError, match="batch-sharded sampling"):
        front.process_inputs("request", tokens_input([5]), asking(gate=RULE), ("generate",))


def test_a_hook_that_is_called_from_nowhere_says_so() -> None:
    with pytest.raises(ValueError, match="this version of vLLM checks requests in a way"):
        WaverProcessor.validate_params(asking(gate=RULE))


def text(special: Sequence[str] = (), words: int = 10, eos_ids: Sequence[int] = (), **named: str) -> TokenText:
    """A tokenizer of so many words; then come its control tokens."""
    vocabulary = {f"w{i}": i for i in range(words)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w0")))
    tokenizer.add_special_tokens({**named, "additional_special_tokens": list(special)})  # type: ignore[dict-item]
    return TokenText(tokenizer, eos_ids)


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "reserved"),
    [
        (text(eos_token="<e>", pad_token="<p>"), 16, 12),  # padding of the output layer
        (text(eos_token="<e>", pad_token="<p>"), 12, 11),
        (text(eos_token="<e>", pad_token="<e>", unk_token="<u>"), 12, 11),
        (text(eos_token="<e>", bos_token="<b>"), 12, 11),
        (text(["<think>", "<x>"], eos_token="<e>"), 13, 11),
        (text(["<x>"], eos_token="<e>", pad_token="<p>", eos_ids=[11]), 13, 12),  # padding that ends texts, too
        (text(["<x>"], eos_token="<e>", pad_token="<p>"), 11, None),  # ids that the output layer does not have
        (text(eos_token="<e>"), 11, None),
        (text(), 10, None),
    ],
)
def test_reserved_tokens(tokens: TokenText, vocabulary: int, reserved: int | None) -> None:
    if reserved is None:
        with pytest.raises(ValueError, match="no spare control token"):
            reserved_token(tokens, vocabulary)
        return
    assert reserved_token(tokens, vocabulary) == reserved
    assert tokens.is_special(reserved)
    assert reserved not in tokens.eos_ids


def test_an_end_that_only_the_generation_config_names_is_not_reserved(
    admit: Callable[..., Any], checkpoint: Callable[[int], Path]
) -> None:
    file = checkpoint(KNOWN) / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [2, 0]}))
    try:
        arrived = admit("V1", asking(gate=RULE))
    finally:
        file.unlink()
    assert RequestParams.decode(arrived.extra_args[KEY]).stop == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_of_a_group_of_workers_the_first_reports(
    rank: int, configure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.distributed import parallel_state

    ring = EntropyRing.create(64)
    try:
        monkeypatch.setattr(parallel_state.get_tp_group(), "rank_in_group", rank)
        adapter = V1Adapter(configure(KNOWN, ring.path), CPU, False)
        wanted = RequestParams(None, Sampling(seed=4, top_logprobs=2), slot=3, tag=9)
        params = SamplingParams(temperature=0.0, extra_args={KEY: dict(wanted.encode())})
        adapter.update_state(BatchUpdate(1, removed=[], added=[(0, params, [5, 6], [])], moved=[]))
        logits = torch.randn(1, KNOWN, generator=torch.Generator().manual_seed(1))
        drawn = int(draw(logits, [Row(wanted.sampling or Sampling(), [5, 6], 2, ())]).tokens)
        assert int(adapter.apply(logits).argmax()) == drawn  # whether it reports or not
        entry = ring.read(3, 9, 0, 2)
        assert (entry is not None and len(entry.top) == 2) == (rank == 0)
        assert ring.words.any() == ring.top.any() == (rank == 0)
    finally:
        ring.close()


def test_indices_that_are_removed_twice_or_never_came_do_no_harm(configure: Callable[..., Any]) -> None:
    adapter = V1Adapter(configure(KNOWN), CPU, False)
    params = SamplingParams(extra_args={KEY: dict(RequestParams(Gate(1, 0.0), stop=0, tag=1).encode())})
    adapter.update_state(None)
    adapter.update_state(BatchUpdate(2, [], [(0, params, None, []), (1, SamplingParams(), [5], [])], []))
    adapter.update_state(BatchUpdate(1, removed=[1, 1, 9], added=[], moved=[(0, 0, MoveDirectionality.SWAP)]))
    assert int(adapter.apply(torch.randn(1, KNOWN)).argmax()) == 0
    adapter.update_state(BatchUpdate(0, removed=[0, 0], added=[], moved=[]))
    logits = torch.randn(1, KNOWN)
    assert torch.equal(adapter.apply(logits.clone()), logits)
