"""Helpers of the engine tests: decode, and run transformers for comparison."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from waver.engines.base import Sampling, Step
from waver.engines.transformers import TransformersEngine

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 1290
"""Output width of the random models: a little more than the bundled tokenizer's ids."""


def copy_tokenizer(directory: Path) -> None:
    """Put the bundled tokenizer beside a model."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models" / "small" / file, directory / file)


def save_random(directory: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """A random model with the bundled tokenizer, as transformers would save it."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    copy_tokenizer(directory)
    return directory


def sampling(**options: Any) -> Sampling:
    return Sampling(**{"temperature": 0.0, "max_tokens": 24, **options})


async def steps(engine: TransformersEngine, prompt: Sequence[int], **options: Any) -> list[Step]:
    return [step async for step in engine.generate(prompt, sampling(**options))]


async def tokens(engine: TransformersEngine, prompt: Sequence[int], **options: Any) -> list[int]:
    return [step.token for step in await steps(engine, prompt, **options)]


@torch.inference_mode()
def generated(engine: TransformersEngine, prompt: Sequence[int], length: int, ignore_eos: bool = False) -> list[int]:
    """Return what `model.generate` makes of a prompt, greedily, without the ids that the tokenizer does not know."""
    padding = list(range(engine.tokens.vocab_size, engine.vocabulary)) or None
    ends = None if ignore_eos else list(engine.tokens.eos_ids)
    ids = torch.tensor([list(prompt)])
    options = {"max_new_tokens": length, "do_sample": False, "eos_token_id": ends, "suppress_tokens": padding}
    out = engine.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    return out[0, len(prompt) :].tolist()


@torch.inference_mode()
def plain_logits(engine: TransformersEngine, ids: Sequence[int]) -> torch.Tensor:
    """`[len(ids), vocab]` float64 logits of one plain pass, the padding of the output layer masked."""
    logits = engine.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    logits[:, engine.tokens.vocab_size :] = -torch.inf
    return logits


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Random ids; control tokens are not among them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 1270, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def plain_state(engine: TransformersEngine, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
    """The hidden state at the last token, `[hidden]` float32, of one plain pass without a cache."""
    inputs = torch.tensor([list(ids)])
    out = engine.model.base_model(input_ids=inputs, use_cache=False, output_hidden_states=True)
    states = out.hidden_states
    layer = states[int(depth * (len(states) - 1))] if depth is not None else out.get("last_hidden_state", states[-1])
    return layer[0, -1].float()
