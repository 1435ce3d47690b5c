"""Compute what a model needs of memory from its configuration: weights, and the KV cache of a token.

Nothing is loaded, so that it answers at once, and for models that are not here. `waver plan` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

GIB = 2**30
BYTES = {
    "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "float8_e4m3fn": 1.0, "int8": 1.0, "int4": 0.5,
}  # fmt: skip
"""Bytes of a number, by type."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
"""Values of `model_type` whose parameters can be counted from the configuration alone."""
QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "dtype": "bfloat16",
         "max_position_embeddings": 40960}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    f"Qwen/Qwen3-{size}": {
        **QWEN3, "hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": layers,
        "num_attention_heads": heads, "tie_word_embeddings": tied,
    }
    for size, hidden, middle, layers, heads, tied in (
        ("0.6B", 1024, 3072, 28, 16, True), ("1.7B", 2048, 6144, 28, 16, True), ("4B", 2560, 9728, 36, 32, True),
        ("8B", 4096, 12288, 36, 32, False), ("14B", 5120, 17408, 40, 40, False), ("32B", 5120, 25600, 64, 64, False),
    )
}  # fmt: skip
"""Contents of the `config.json` of models that the documentation speaks of."""


@dataclass(frozen=True)
class Shape:
    """A model's size. `parameters`: their number; `kv_numbers`: numbers that the KV cache holds for a token."""

    name: str
    parameters: int
    kv_numbers: int
    context: int
    """Most tokens of a prompt and its answer; 0 if the configuration does not say."""
    dtype: str
    stored: int | None = None
    """Bytes of the weights as they lie in the folder; None where only the configuration is there."""

    def weights(self, dtype: str | None = None) -> float:
        """Return the bytes of the weights, in the type of the configuration or another."""
        if dtype is None and self.stored is not None:
            return float(self.stored)
        return self.parameters * BYTES[dtype or self.dtype]

    def kv(self, tokens: int, dtype: str | None = None) -> float:
        """Return the bytes of the KV cache of so many tokens. Windows of attention are not taken off."""
        return self.kv_numbers * tokens * BYTES[dtype or _cache_type(self.dtype)]


def _cache_type(dtype: str) -> str:
    """Return the type of a cache beside weights of a type: 16 bits beside fewer."""
    return dtype if BYTES[dtype] >= 2 else "bfloat16"


def read_shape(model: str) -> Shape:
    """Return the shape of a model: a folder, a `config.json`, or a name in `KNOWN`.

    Raises:
        ValueError: there is no such model, or it cannot be computed; the message is for the user.
    """
    path = Path(model).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{file} is no configuration of a model.")
        return _shape(model, config, _stored(path) if path.is_dir() else None)
    known = next((name for name in KNOWN if name.lower() == model.lower()), None)
    if known is None:
        raise ValueError(
            f"There is no model or config.json at {model}, and it is none of {', '.join(KNOWN)}: download its "
            "config.json and give the path of that."
        )
    return _shape(known, KNOWN[known], None)


def _shape(name: str, whole: Mapping[str, Any], stored: tuple[int, int] | None) -> Shape:
    text = whole.get("text_config")
    config = {**whole, **text} if isinstance(text, dict) else whole
    kind = config.get("model_type")
    sizes: list[Any] = [config.get(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")]
    if not all(isinstance(each, int) and each > 0 for each in sizes):
        raise ValueError(f"{name}: its configuration does not give hidden_size, layers and attention heads.")
    layers, heads, hidden = map(int, sizes)
    unlike = [key for key in ("kv_lora_rank", "linear_num_key_heads", "ssm_state_size") if config.get(key)]
    if unlike:
        raise ValueError(f"{name}: its cache is not one of keys and values for each head ({unlike[0]}).")
    if stored is None and (kind not in FAMILIES or text is not None):
        raise ValueError(
            f"{name}: parameters of the kind {kind!r} cannot be counted from the configuration alone "
            f"({', '.join(FAMILIES)} can); give the folder with its weights."
        )
    head = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    found = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    shape = Shape(
        name=name,
        parameters=stored[0] if stored else count_parameters(config),
        kv_numbers=2 * layers * kv_heads * head,
        context=int(config.get("max_position_embeddings") or 0),
        dtype=found if found in BYTES else "bfloat16",
    )
    return replace(shape, stored=stored[1]) if stored else shape


def count_parameters(config: Mapping[str, Any]) -> int:
    """Count the parameters of a decoder of one of the `FAMILIES`, all experts included."""
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    kind = config["model_type"]
    queries, keys = heads * head, kv_heads * head
    attention = hidden * (2 * queries + 2 * keys)
    if config.get("attention_bias") or kind == "qwen2":
        attention += queries + 2 * keys + (hidden if config.get("attention_bias") else 0)
    if kind in ("qwen3", "qwen3_moe"):
        attention += 2 * head
    middle = config["intermediate_size"]
    dense = 3 * hidden * middle + ((2 * middle + hidden) if config.get("mlp_bias") else 0)
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    expert = 3 * hidden * (config.get("moe_intermediate_size") or middle)
    block = experts * expert + hidden * experts if kind in ("mixtral", "qwen3_moe") else dense
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(embeddings + layers * (attention + block + 2 * hidden) + hidden)


def _stored(folder: Path) -> tuple[int, int] | None:
    """Return the number of parameters in a folder's safetensors files and their bytes; None if there are none."""
    numbers = size = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            try:
                header = json.loads(opened.read(length))
            except ValueError:
                raise ValueError(f"{file} is no safetensors file.") from None
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                size += end - begin
                product = 1
                for length in tensor["shape"]:
                    product *= length
                numbers += product
    return (numbers, size) if numbers else None
