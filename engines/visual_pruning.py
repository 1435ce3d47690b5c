"""Drop image tokens of a vision-language model behind a shallow layer (EntropyPrune, arXiv 2602.17196).

Before decoder layer K the queries of layer K - 1 score each image token by the matrix entropy of its heads. The tokens
with the largest and all text tokens go on, with their own positions; the others are gone from layer K on, also from its
part of the cache. Later tokens are decoded against what is left.

The paper takes queries behind the rotary embedding. That turns all heads of a token alike, which changes no Gram
matrix, so that the queries before it give the same scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from waver.engines.base import Unsupported
from waver.engines.pictures import PrunedPrompt, Pruning
from waver.entropy.matrix import collapse_layer, keep_tokens, representation_entropy, tokens_to_keep


@dataclass
class Pruned:
    """A pruned prompt: the places `[kept]` that went on, and how many image tokens there were and are."""

    places: torch.Tensor
    before: int
    after: int


class VisualPruner:
    """Hooks on the decoder of an image-text-to-text model of transformers, for prompts one at a time.

    Args:
        model: the model; its decoder has `layers` with `self_attn.q_proj`. image_token: the id of an image's tokens.

    Raises:
        Unsupported: the model has no such decoder, or the layer is none of its.
    """

    def __init__(self, model: nn.Module, image_token: int, how: Pruning) -> None:
        self.layers = check_pruning(model, how)
        self.model, self.image_token, self.how = model, image_token, how
        self.done: Pruned | None = None
        self._queries: torch.Tensor | None = None
        self._keys: torch.Tensor | None = None
        self._rotation: Any = None
        self._passes = 0
        self._times: list[float] = []
        self._images: list[tuple[int, int]] = []

    @contextmanager
    def watching(self, ids: torch.Tensor) -> Iterator[VisualPruner]:
        """Prune the prompt `[1, tokens]` in the forward passes within, and keep its cache consistent while tokens are
        decoded.

        Raises:
            ValueError: there is more than one prompt.
        """
        if ids.shape[0] != 1:
            raise ValueError("image tokens are dropped for one prompt at a time")
        self._images = runs((ids[0] == self.image_token).tolist())
        self.done, self._passes, self._times = None, 0, []
        with self.going_on():
            yield self

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Decode against the cache of a prompt that was pruned."""
        attention: Any = self.layers[self.how.layer - 1].self_attn
        source = getattr(attention, "q_norm", None) or attention.q_proj
        hooks = [source.register_forward_hook(self._see)]
        hooks += [
            layer.register_forward_pre_hook(self._cut, with_kwargs=True) for layer in self.layers[self.how.layer :]
        ]
        if self.how.by == "attention":
            keys = getattr(attention, "k_norm", None) or attention.k_proj
            hooks.append(keys.register_forward_hook(self._see_keys))
            hooks.append(attention.register_forward_pre_hook(self._see_rotation, with_kwargs=True))
        if not self._passes:
            hooks.append(self.layers[0].register_forward_pre_hook(self._note_time))
            hooks.append(self.layers[self.how.layer].register_forward_pre_hook(self._note_time, prepend=True))
            hooks.append(self.layers[-1].register_forward_hook(self._note_time))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def report(self) -> PrunedPrompt | None:
        """Return what was dropped; None where nothing could be."""
        if self.done is None:
            return None
        return PrunedPrompt(self.how.layer, self.done.before, self.done.after, self._seconds_saved())

    def _seconds_saved(self) -> float:
        """Estimate the time that was saved: the layers in front took so long for all tokens, and the others would have;
        choosing the tokens counts against it."""
        if len(self._times) < 3:
            return 0.0
        begun, cut, ended = self._times[:3]
        behind = len(self.layers) - self.how.layer
        return (cut - begun) / self.how.layer * behind - (ended - cut)

    def _note_time(self, layer: nn.Module, *_: Any) -> None:
        if len(self._times) < 3:
            if next(layer.parameters()).is_cuda:
                torch.cuda.synchronize()
            self._times.append(time.perf_counter())

    def _see(self, _: nn.Module, __: Any, out: torch.Tensor) -> None:
        self._queries = out
        self._passes += 1

    def _see_keys(self, _: nn.Module, __: Any, out: torch.Tensor) -> None:
        self._keys = out

    def _see_rotation(self, _: nn.Module, __: Any, named: dict[str, Any]) -> None:
        self._rotation = named.get("position_embeddings")

    def _cut(self, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Gather what enters a layer: in the prompt's pass hidden states, positions and mask, later the mask only."""
        hidden = given[0] if given else named["hidden_states"]
        assert self._queries is not None
        length = self._queries.shape[1]
        reads_prompt = self._passes == 1
        if reads_prompt and self.done is None:
            self._choose(length)
        if self.done is None:
            return None
        places = self.done.places.to(hidden.device)
        named = dict(named)
        mask = named.get("attention_mask")
        if reads_prompt:
            if hidden.shape[1] == length:  # the first of the layers; the others get what it gives
                hidden = hidden[:, places]
            for name in ("position_ids", "position_embeddings", "cache_position"):
                named[name] = _gathered(named.get(name), places, length)
            if mask is not None:
                mask = mask[..., places, :][..., places] if mask.ndim == 4 else mask[..., places]
        elif mask is not None:
            begun = int(self.done.places[-1]) + 1  # the prompt's length: its last token is text, and kept
            later = torch.arange(begun, mask.shape[-1], device=places.device)
            mask = mask[..., torch.cat([places, later])]
        named["attention_mask"] = mask
        if given:
            return (hidden, *given[1:]), named
        named["hidden_states"] = hidden
        return given, named

    def _choose(self, length: int) -> None:
        """Choose the tokens that go on, in each image by itself."""
        count = sum(end - start for start, end in self._images)
        if not count or self._images[-1][1] >= length:
            return
        queries = self._queries
        assert queries is not None
        attention: Any = self.layers[self.how.layer - 1].self_attn
        heads = queries[0].reshape(length, -1, attention.head_dim)
        kept = torch.ones(length, dtype=torch.bool)
        for start, end in self._images:
            tokens = end - start
            keep = tokens_to_keep(len(self.layers), self.how.layer, tokens, self.how.keep * tokens)
            kept[start:end] = False
            kept[start + self._best(heads, start, end, keep)] = True
        places = kept.nonzero().flatten()
        self.done = Pruned(places, count, count - (length - len(places)))

    def _best(self, heads: torch.Tensor, start: int, end: int, keep: int) -> torch.Tensor:
        """Choose `keep` of an image's tokens, in their order, from the queries `[tokens, heads, width]` of the
        prompt."""
        if self.how.by == "entropy":
            return keep_tokens(heads[start:end], keep, self.how.normalise)
        if self.how.by == "random":
            scores = torch.rand(end - start, generator=torch.Generator().manual_seed(start * 4096 + end))
        else:
            scores = self._attention(heads)[start:end].cpu()
        return scores.argsort(descending=True, stable=True)[: max(keep, 1)].sort().values

    def _attention(self, heads: torch.Tensor) -> torch.Tensor:
        """Compute the attention `[tokens]` that the prompt's last token pays in the layer in front, the mean of its
        heads: what FastV (arXiv 2403.06764) goes by."""
        assert self._keys is not None
        width = heads.shape[-1]
        keys = self._keys[0].reshape(len(heads), -1, width).transpose(0, 1)
        query = heads[-1:].transpose(0, 1)
        if self._rotation is not None:  # of the time axis, where pictures have three
            cos, sin = (each.reshape(-1, *each.shape[-2:])[0] for each in self._rotation)
            keys = keys * cos + _turned(keys) * sin
            query = query * cos[-1:] + _turned(query) * sin[-1:]
        keys = keys.repeat_interleave(query.shape[0] // keys.shape[0], 0)
        weights: torch.Tensor = (query @ keys.mT / width**0.5).float().softmax(-1).mean((0, 1))
        return weights


def _turned(x: torch.Tensor) -> torch.Tensor:
    """Turn each pair of a rotary embedding by a right angle."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _gathered(value: Any, places: torch.Tensor, length: int) -> Any:
    """Gather the tokens of positions: a tensor, or the pair of cosines and sines, along the axis that has them."""
    if isinstance(value, tuple):
        return tuple(_gathered(each, places, length) for each in value)
    if value is None:
        return None
    axis = -2 if value.is_floating_point() else -1
    return value.index_select(axis, places) if value.shape[axis] == length else value


DECODERS = (
    "model.language_model.layers",
    "model.text_model.layers",
    "language_model.model.layers",
    "model.layers",
)
"""Places of a text decoder's layers in models of transformers."""


def check_pruning(model: nn.Module, how: Pruning) -> nn.ModuleList:
    """Check that image tokens can be dropped in this model, and return its layers.

    Raises:
        Unsupported: it has no such decoder, or the layer or the share is out of range.
    """
    layers = decoder_layers(model)
    if not 0 < how.layer < len(layers):
        raise Unsupported(f"tokens are dropped before a layer from 1 to {len(layers) - 1}, not {how.layer}", "policy")
    if not 0 < how.keep <= 1:
        raise Unsupported(f"the share of image tokens to keep is above 0 and at most 1, not {how.keep}", "policy")
    return layers


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Find the layers of a model's text decoder.

    Raises:
        Unsupported: there are none with `self_attn.q_proj`.
    """
    for path in DECODERS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and all(hasattr(each.self_attn, "q_proj") for each in found):
            return found
    raise Unsupported(f"{type(model).__name__} has no decoder with layers of self_attn.q_proj")


def runs(marks: Sequence[bool]) -> list[tuple[int, int]]:
    """List the runs of true marks as half-open ranges: the images of a prompt."""
    found: list[tuple[int, int]] = []
    for place, mark in enumerate(marks):
        if not mark:
            continue
        if found and found[-1][1] == place:
            found[-1] = found[-1][0], place + 1
        else:
            found.append((place, place + 1))
    return found


@torch.inference_mode()
def find_layer(model: Any, image_token: int, prompts: Sequence[dict[str, torch.Tensor]]) -> tuple[int, list[float]]:
    """Find the layer before which to drop tokens, from prompts with images: where the entropy of the image tokens'
    hidden states falls most. Returns it and the mean entropy behind every layer."""
    sums: torch.Tensor | None = None
    for prompt in prompts:
        states = model(**prompt, output_hidden_states=True, use_cache=False).hidden_states[1:]
        mine = prompt["input_ids"][0] == image_token
        own = torch.tensor([representation_entropy(each[0, mine]) for each in states])
        sums = own if sums is None else sums + own
    if sums is None:
        raise ValueError("there are no prompts to find the layer by")
    means = (sums / len(prompts)).tolist()
    return collapse_layer(means), means
