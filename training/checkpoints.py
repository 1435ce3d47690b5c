"""Load a causal language model to train it, and write what became of it as `waver serve` loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from waver import job
from waver.engines import activations
from waver.engines.base import reason
from waver.engines.tokens import TokenText


def load(model: str) -> tuple[PreTrainedModel, TokenText]:
    """Load a model in float32, in which training loses no small updates, and its tokenizer.

    Raises:
        ValueError: it cannot be loaded; the message says why.
    """
    disable_progress_bar()
    activations.register()
    local: dict[str, Any] = {"local_files_only": Path(model).is_dir()}
    if not torch.cuda.is_available():  # on a CPU the fused kernel's backward pass takes longer than the rest together
        local["attn_implementation"] = "eager"
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True, **local)
        tokens = TokenText.load(model, loaded.generation_config.eos_token_id)
    except Exception as error:  # transformers, safetensors and the tokenizers each raise their own kinds
        raise ValueError(f"cannot load {model!r}: {reason(error)}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(loaded, device)
    return loaded, tokens


def stored_dtype(model: str) -> torch.dtype:
    """Return the type in which a model's weights are stored, float32 where its configuration does not say."""
    config = AutoConfig.from_pretrained(model, local_files_only=Path(model).is_dir())
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def save(
    path: Path,
    model: PreTrainedModel,
    tokens: TokenText,
    dtype: torch.dtype,
    beside: Callable[[Path], Any] = lambda folder: None,
) -> None:
    """Write a model and its tokenizer as a whole folder; a crash leaves the one that was there.

    Args:
        dtype: the type of the stored weights; those of `model` keep theirs. beside: writes further files there.
    """

    def write(folder: Path) -> None:
        weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in _state(model)}
        before = model.config.dtype
        model.config.dtype = dtype
        try:
            model.save_pretrained(folder, state_dict=weights)
        finally:
            model.config.dtype = before
        tokens.tokenizer.save_pretrained(folder)
        beside(folder)

    job.replace_folder(path, write)


def _state(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """List the weights; those that are tied are listed once, as `save_pretrained` cannot tell copies of them."""
    seen: set[int] = set()
    found = []
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            found.append((name, value.detach()))
    return found


def sha256(file: Path) -> str:
    """Return a file's digest, by which a run knows its data.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256(file.read_bytes()).hexdigest()
