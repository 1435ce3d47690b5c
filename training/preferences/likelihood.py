"""Compute how likely answers are under a model, and the DID of two models at each of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from waver.training.preferences.did import did_entropy
from waver.training.preferences.pairs import Answer

Asked = tuple[Sequence[int], Answer]
"""A prompt and an answer to it."""


def batches(asked: Sequence[Asked], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield `input_ids`, `attention_mask` and the mask of the tokens that count, each `[rows, longest]`."""
    for place in range(0, len(asked), size):
        yield padded(asked[place : place + size])


def padded(asked: Sequence[Asked]) -> tuple[Tensor, Tensor, Tensor]:
    """Put prompts and answers side by side, padded on the right."""
    width = max(len(prompt) + len(answer.ids) for prompt, answer in asked)
    ids, seen, counts = (torch.zeros(len(asked), width, dtype=torch.long) for _ in range(3))
    for row, (prompt, answer) in enumerate(asked):
        end = len(prompt) + len(answer.ids)
        ids[row, :end] = torch.tensor([*prompt, *answer.ids])
        seen[row, :end] = 1
        counts[row, len(prompt) : end] = torch.tensor(answer.mask)
    return ids, seen, counts


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, asked: Sequence[Asked], batch: int = 8, advance: Callable[[int], None] = lambda rows: None
) -> Tensor:
    """Compute the sums of the log-probabilities of answers' tokens, `[N]` in nats, on the CPU."""
    model.eval()
    found = []
    for ids, seen, counts in batches(asked, batch):
        logits = model(ids.to(model.device), attention_mask=seen.to(model.device), use_cache=False).logits
        drawn = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None].to(model.device)).squeeze(-1)
        found.append((drawn.cpu() * counts[:, 1:]).sum(-1))
        advance(len(ids))
    return torch.cat(found)


@torch.inference_mode()
def token_entropies(
    policy: PreTrainedModel, reference: PreTrainedModel, asked: Sequence[Asked], batch: int = 8
) -> Tensor:
    """Compute the mean over each answer's tokens of the entropy of the DID over the vocabulary, `[N]` in nats."""
    policy.eval()
    reference.eval()
    found = []
    for ids, seen, counts in batches(asked, batch):
        one, two = (
            model(ids.to(model.device), attention_mask=seen.to(model.device), use_cache=False).logits[:, :-1].float()
            for model in (policy, reference)
        )
        entropy = did_entropy(one.log_softmax(-1), two.log_softmax(-1)).cpu()
        mask = counts[:, 1:]
        found.append((entropy * mask).sum(-1) / mask.sum(-1).clamp(min=1))
    return torch.cat(found)


@torch.inference_mode()
def draw(
    model: PreTrainedModel, prompt: Sequence[int], count: int, longest: int, ends: Sequence[int], seed: int
) -> list[Answer]:
    """Draw answers at temperature 1 without truncation; they are a function of the seed."""
    model.eval()
    torch.manual_seed(seed)
    ids = torch.tensor([list(prompt)], device=model.device)
    rows = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        num_return_sequences=count,
        max_new_tokens=longest,
        eos_token_id=list(ends),
        pad_token_id=ends[0] if ends else 0,
    )
    return [_ended(row[len(prompt) :].tolist(), ends) for row in rows]


def _ended(ids: list[int], ends: Sequence[int]) -> Answer:
    end = next((place + 1 for place, each in enumerate(ids) if each in ends), len(ids))
    return Answer(tuple(ids[:end]), (1,) * end)
