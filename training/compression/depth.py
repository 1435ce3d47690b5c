"""Remove attention and MLP sub-blocks of a model: for a trial by hooks, for good in a checkpoint."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from waver.training.compression.search import State


class Blocks:
    """The blocks of a decoder, of which sub-blocks can be switched off: their output is then 0, so that the residual
    stream passes.

    Raises:
        ValueError: the model is of another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers: nn.ModuleList = block_layers(model)
        layers: list[Any] = list(self.layers)
        self.parts: list[Any] = [layer.self_attn for layer in layers] + [layer.mlp for layer in layers]
        self.state: State = (0,) * len(self.parts)
        for place, part in enumerate(self.parts):
            part.register_forward_hook(lambda _, __, out, place=place: self._switched(out, place))

    def __len__(self) -> int:
        return len(self.layers)

    def _switched(self, out: Any, place: int) -> Any:
        if not self.state[place]:
            return out
        if isinstance(out, tuple):
            return (torch.zeros_like(out[0]), *out[1:])
        return torch.zeros_like(out)

    def set(self, state: State) -> None:
        """Switch sub-blocks off (1) or on (0)."""
        self.state = state

    @torch.inference_mode()
    def similarities(self, ids: torch.Tensor) -> list[float]:
        """Return the mean cosine of each block's input and output over a batch of token ids `[batch, tokens]`: what
        ShortGPT removes first."""
        found = self.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        return [float(torch.cosine_similarity(a.float(), b.float(), dim=-1).mean()) for a, b in pairwise(found)]

    def remove(self, state: State) -> dict[str, list[int]]:
        """Remove sub-blocks for good: blocks of which both are gone are deleted, of others the output weights become 0.

        The model is an ordinary one of its architecture afterwards. Returns which blocks were deleted, and of which
        attention and MLP were set to 0, by their numbers before.
        """
        self.set((0,) * len(state))
        count = len(self.layers)
        gone = [i for i in range(count) if state[i] and state[count + i]]
        told: dict[str, list[int]] = {"blocks": gone, "attention": [], "mlp": []}
        with torch.no_grad():
            for i in range(count):
                if i in gone:
                    continue
                layer: Any = self.layers[i]
                for name, off, part in (
                    ("attention", state[i], layer.self_attn.o_proj),
                    ("mlp", state[count + i], layer.mlp.down_proj),
                ):
                    if off:
                        told[name].append(i)
                        part.weight.zero_()
                        if part.bias is not None:
                            part.bias.zero_()
        for i in reversed(gone):
            del self.layers[i]
        for i, left in enumerate(self.layers):
            attention: Any = left.self_attn
            attention.layer_idx = i
        config = self.model.config
        config.num_hidden_layers = len(self.layers)
        if getattr(config, "layer_types", None):
            config.layer_types = [kind for i, kind in enumerate(config.layer_types) if i not in gone]
        return told


def block_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks of a decoder.

    Raises:
        ValueError: it has none with these parts.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    fits = isinstance(layers, nn.ModuleList) and all(
        hasattr(getattr(layer, "self_attn", None), "o_proj") and hasattr(getattr(layer, "mlp", None), "down_proj")
        for layer in layers
    )
    if not fits:
        raise ValueError(f"{type(model).__name__} has no blocks with self_attn.o_proj and mlp.down_proj to remove")
    found: nn.ModuleList = layers  # type: ignore[assignment]
    return found
