"""Read a model's parameter count and token embeddings from its checkpoint, or the count from its name."""

from __future__ import annotations

import json
import re
from functools import cache
from math import prod
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from waver.engines.base import reason

EMBEDDING = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight")
LARGEST = 1e15
"""Bound on the entries of an embedding: far beyond useful ones, and sums of its square still fit float32."""
BLOCK = 4096
"""Rows of the matrix that are checked together."""
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


def directory(model: str, revision: str | None = None) -> Path:
    """Locate a model's files: the directory itself, or the hub's cache (nothing is fetched).

    Raises:
        ValueError: they are not on this machine.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ValueError(f"the files of {model!r} are not on this machine: {reason(error)}") from error


def _files(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return sorted(folder.glob("*.safetensors"))


def stored_parameters(model: str, revision: str | None = None) -> int:
    """Count the parameters of a checkpoint in safetensors; of a quantised one, the numbers that it stores.

    Raises:
        ValueError: there is none on this machine.
    """
    count = 0
    for file in _files(directory(model, revision)):
        with safe_open(file, framework="pt") as tensors:
            count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    if not count:
        raise ValueError(f"{model!r} has no weights in safetensors")
    return count


def parameter_count_in_name(model: str) -> int:
    """Parse the parameter count from a name such as `Qwen3-8B`, `Mixtral-8x7B` or `gemma-3-270m`.

    Raises:
        ValueError: it tells none.
    """
    match = _SIZE.search(model.rstrip("/").rsplit("/", 1)[-1])
    if match is None:
        raise ValueError(f"the name {model!r} does not tell how large the model is; set `parameters`, for cost")
    experts, number, unit = match.groups()
    return round(int(experts or 1) * float(number) * {"b": 1e9, "m": 1e6}[unit.lower()])


def parameter_count(model: str, revision: str | None = None) -> int:
    """Count the parameters of a checkpoint in safetensors, else parse the count from its name.

    Raises:
        ValueError: neither tells.
    """
    try:
        return stored_parameters(model, revision)
    except ValueError:
        return parameter_count_in_name(model)


def input_embeddings(model: str, revision: str | None = None) -> torch.Tensor:
    """Read the input embedding matrix, `[vocab, hidden]`, as stored.

    Raises:
        ValueError: the checkpoint has none under any of the usual names, or is not on this machine.
    """
    for file in _files(directory(model, revision)):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(EMBEDDING):
                    matrix: torch.Tensor = tensors.get_tensor(name)
                    return matrix
    raise ValueError(f"{model!r} has no embedding matrix under a name that is known")


@cache
def embedding_flaw(model: str, revision: str | None, vocabulary: int) -> str | None:
    """Explain why the embeddings of a vocabulary cannot be whitened; None where they can. The matrix is read once, and
    not kept."""
    try:
        matrix = input_embeddings(model, revision)
    except ValueError as error:
        return str(error)
    if matrix.ndim != 2 or len(matrix) < vocabulary:
        return f"its input embeddings have the shape {tuple(matrix.shape)}, for {vocabulary} tokens"
    if not all(block.float().abs().max() < LARGEST for block in matrix.split(BLOCK)):
        return "the embedding matrix has entries that are not finite"
    return None
