"""LoRA adapters under vLLM: each a model of its own, measured and gated like any other, beside its base in a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.engines.driving import ROOT, copy_tokenizer
from tests.engines.vllm_here import needs_vllm
from tests.server.test_vllm import traced
from waver.engines.base import Gate, Sampling, Step
from waver.training.pair.world import draw

pytestmark = [needs_vllm, pytest.mark.timeout(1500)]

SMALL = ROOT / "models" / "small"
TARGETS = ("q_proj", "v_proj", "down_proj")
ALPHA = 8


def save_adapter(directory: Path, rank: int, merged: Path | None = None) -> Path:
    """A random adapter of the bundled small model, as peft would save it; and the model with the adapter in its
    weights."""
    generator = torch.Generator().manual_seed(rank)
    model = AutoModelForCausalLM.from_pretrained(SMALL)
    weights = {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in TARGETS:
            rows, columns = module.weight.shape
            down = torch.randn(rank, columns, generator=generator) * 0.1
            up = torch.randn(rows, rank, generator=generator) * 0.05
            weights[f"base_model.model.{name}.lora_A.weight"] = down
            weights[f"base_model.model.{name}.lora_B.weight"] = up
            module.weight.data += ALPHA / rank * up @ down
    directory.mkdir()
    save_file(weights, directory / "adapter_model.safetensors")
    kind = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": ALPHA, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**kind, "target_modules": list(TARGETS)}))
    if merged is not None:
        model.save_pretrained(merged)
        copy_tokenizer(merged)
    return directory


@pytest.fixture(scope="module")
def adapted(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of the bundled small model with an adapter under vLLM, and of both in transformers (`embedded-…`)."""
    folder = tmp_path_factory.mktemp("adapter")
    adapter = save_adapter(folder / "tuned", 4, folder / "merged")
    args = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8}
    args |= {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3}
    engines = {
        "small": {"backend": "vllm", "model": str(SMALL), "args": args},
        "tuned": {"backend": "lora", "base": "small", "model": str(adapter)},
        "embedded-small": {"model": str(SMALL), "dtype": "float32"},
        "embedded-tuned": {"model": str(folder / "merged"), "dtype": "float32"},
    }
    running = start(wait=False, config={"engines": engines, "presets": {}, "default_preset": None})
    running.until_ready(600)
    yield running
    running.server.should_exit = True


def test_an_adapter_is_measured_beside_its_model(adapted: Any) -> None:
    """Requests of both in one batch, with gates and draws: the same steps as from two models in transformers."""
    engines = adapted.runtime.engines
    prompts = [
        engines["small"].tokens.chat([{"role": "user", "content": item.prompt}]) for item in draw("arithmetic", 7, 4)
    ]
    asked = [
        (prompt, Sampling(max_tokens=40, temperature=float(i % 2), seed=i, gate=Gate(2, 1.5) if i > 1 else None))
        for i, prompt in enumerate(prompts)
    ]

    async def answer(name: str, prompt: list[int], sampling: Sampling) -> list[Step]:
        return [step async for step in engines[name].generate(prompt, sampling)]

    async def both(prefix: str) -> list[list[Step]]:
        names = (f"{prefix}small", f"{prefix}tuned")
        return await asyncio.gather(*(answer(name, *each) for each in asked for name in names))

    ours, theirs = adapted.run(both("")), adapted.run(both("embedded-"))
    for mine, other in zip(ours, theirs, strict=True):
        assert [s.token for s in mine] == [s.token for s in other]
        assert [s.finish for s in mine] == [s.finish for s in other]
        assert [s.entropy for s in mine] == pytest.approx([s.entropy for s in other], abs=1e-3)
    assert {step.engine for steps in ours for step in steps} == {"small", "tuned"}
    assert all(a != b for a, b in zip(ours[::2], ours[1::2], strict=True)), "the adapter changes nothing"


def test_texts_and_states_are_read_with_the_adapter(adapted: Any) -> None:
    engines = adapted.runtime.engines
    text = engines["small"].tokens.encode("40 + 41 = 81. " * 12)
    for ask in (lambda each: each.score(text), lambda each: each.hidden_state(text)):
        tuned, expected, plain = (adapted.run(ask(engines[n])) for n in ("tuned", "embedded-tuned", "small"))
        if isinstance(tuned, list):
            tuned, expected, plain = ([step.logprob for step in steps] for steps in (tuned, expected, plain))
        assert tuned == pytest.approx(expected, abs=1e-3)
        assert tuned != pytest.approx(plain, abs=1e-1)


def test_a_model_and_its_adapter_share_an_answer(adapted: Any) -> None:
    switches = 0
    for item in draw("arithmetic", 8, 6):
        ours, theirs = (
            traced(
                adapted,
                [
                    {
                        "name": "ead",
                        "small": f"{prefix}small",
                        "large": f"{prefix}tuned",
                        "threshold": 0.05,
                        "window": 2,
                        "min_tokens": 1,
                    }
                ],
                item.prompt,
                model=f"{prefix}small",
                max_tokens=60,
            )
            for prefix in ("", "embedded-")
        )
        assert [t["id"] for t in ours] == [t["id"] for t in theirs]
        assert [f"embedded-{t['engine']}" for t in ours] == [t["engine"] for t in theirs]
        switches += sum(a["engine"] != b["engine"] for a, b in pairwise(ours))
    assert switches > 3


def test_an_adapter_that_cannot_be_loaded_is_refused_and_harms_nobody(adapted: Any, tmp_path: Path) -> None:
    small = adapted.runtime.engines["small"]
    for directory, reason in ((save_adapter(tmp_path / "wide", 16), "rank"), (tmp_path / "absent", "absent")):
        with pytest.raises(ValueError, match=rf"engine 'bad': vLLM cannot load the adapter .*{reason}"):
            adapted.run(small.with_adapter("bad", str(directory)))
    narrow = str(save_adapter(tmp_path / "narrow", 1))
    adapted.run(small.with_adapter("second", narrow))
    with pytest.raises(ValueError, match="needs max_loras: 4 among its args"):  # one of three places stays empty
        adapted.run(small.with_adapter("third", narrow))
    with adapted.openai() as client:
        answers = [
            client.completions.create(model=name, prompt="1 + 1 =", max_tokens=4, temperature=0).choices[0].text
            for name in ("small", "tuned", "embedded-small", "embedded-tuned")
        ]
        assert [model.id for model in client.models.list().data][:2] == ["small", "tuned"]
    assert answers[:2] == answers[2:]
    assert small.restarts == 0
