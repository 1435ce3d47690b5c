"""Measure edits: whether the model says the new facts, also asked otherwise, and leaves their neighbours alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from waver.engines.tokens import TokenText
from waver.training.editing.editor import Editor
from waver.training.editing.facts import Ask, Fact
from waver.training.editing.sites import rows


@torch.inference_mode()
def likeliest(model: PreTrainedModel, sequences: Sequence[Sequence[int]], batch: int = 32) -> list[list[int]]:
    """Return the likeliest next token behind every token of each sequence."""
    found: list[list[int]] = []
    for place in range(0, len(sequences), batch):
        part = sequences[place : place + batch]
        best = model(**rows(model, part), use_cache=False).logits.argmax(-1).tolist()
        found += [row[: len(ids)] for row, ids in zip(best, part, strict=True)]
    return found


def says(model: PreTrainedModel, tokens: TokenText, asked: Sequence[tuple[Ask, Sequence[int]]]) -> list[bool]:
    """Tell for each way to ask whether greedy decoding gives the target's tokens."""
    contexts = [ask.ids(tokens) for ask, _ in asked]
    given = [[*context, *target] for context, (_, target) in zip(contexts, asked, strict=True)]
    best = likeliest(model, given)
    return [
        row[len(context) - 1 : -1] == list(target)
        for row, context, (_, target) in zip(best, contexts, asked, strict=True)
    ]


def measure(editor: Editor, facts: Sequence[Fact], ends: int = 50) -> dict[str, float | int]:
    """Return the rates at which facts are said (`efficacy`, also of the first and last `ends`), paraphrases are
    answered alike (`generalisation`) and neighbours as before (`locality`: their likeliest next token is the same), and
    the drift. Where there is nothing to measure a rate by, it is left out."""
    model, tokens = editor.model, editor.tokens
    targets = [fact.target_ids(tokens) for fact in facts]
    said = says(model, tokens, [(fact.ask, target) for fact, target in zip(facts, targets, strict=True)])
    found: dict[str, float | int] = {
        "facts": len(facts),
        "efficacy": _rate(said),
        "efficacy_first": _rate(said[:ends]),
        "efficacy_last": _rate(said[-ends:]),
        "drift": editor.drift(),
    }
    other = [(ask, target) for fact, target in zip(facts, targets, strict=True) for ask in fact.paraphrases]
    if other:
        found["generalisation"] = _rate(says(model, tokens, other))
    near = [ask.ids(tokens) for fact in facts for ask in fact.neighbours]
    if near:
        after = [row[-1] for row in likeliest(model, near)]
        with editor.unedited():
            before = [row[-1] for row in likeliest(model, near)]
        found["locality"] = _rate([a == b for a, b in zip(after, before, strict=True)])
    return found


def _rate(found: Sequence[bool]) -> float:
    return sum(found) / len(found)
