"""Attend with the queries of a group together, where several heads share keys and values (grouped-query attention).

With an attention mask, transformers copies keys and values for each head before PyTorch's kernel reads them, anew for
every token: seven times as much for a Qwen2.5 of 0.5 billion parameters. The CPU's kernel can be told of groups; and
in a decoding step, which has a single query of each head, those of a group are several queries of one head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "waver_grouped"
"""The attention by transformers' name for it."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' `sdpa` does.

    Args:
        query: `[rows, heads, queries, width]`; `key` and `value`: `[rows, groups, keys, width]`.
        attention_mask: `[rows, 1, queries, keys]`, added to the scores or true where they count.

    Returns:
        `[rows, queries, heads, width]`, and None for the weights.
    """
    rows, heads, queries, width = query.shape
    groups = key.shape[1]
    plain = groups == heads or attention_mask is None or attention_mask.shape[1] != 1
    if plain or options.get("position_bias") is not None or options.get("cache") is not None:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return attended
    how = {"attn_mask": attention_mask, "dropout_p": options.get("dropout", 0.0), "scale": options.get("scaling")}
    if queries == 1:
        together = query.reshape(rows, groups, heads // groups, width)
        made = scaled_dot_product_attention(together, key, value, **how).reshape(rows, 1, heads, -1)
        return made, None
    return scaled_dot_product_attention(query, key, value, enable_gqa=True, **how).transpose(1, 2).contiguous(), None


def group(model: PreTrainedModel) -> bool:
    """Have a model on the CPU attend so, if it attends by `sdpa` and its heads share keys and values.

    Returns:
        Whether it does now.
    """
    shared = any(getattr(module, "num_key_value_groups", 1) > 1 for module in model.modules())
    if not shared or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)
    return True
