"""Prediction heads: which token each drafts, what counts, and that training raises what is accepted of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from tests.training.draft.drafting import SMALL, sums, waver
from waver.training import checkpoints
from waver.training.draft.heads import Heads, heads_loss, read, whole
from waver.training.draft.losses import token_loss


def test_a_head_drafts_the_token_behind_those_it_has_seen() -> None:
    model, _ = checkpoints.load(str(SMALL))
    heads = Heads(96, 3)
    ids = torch.arange(5, 15)[None]
    logp, logq = read(model, heads, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1.0)
    assert logp.shape == logq.shape == (1, 10 - 1 - 3, 3, 1280)
    with torch.no_grad():
        own = model(ids).logits[0].log_softmax(-1)
    assert torch.allclose(logp[0, 2, 0], own[3], atol=1e-4), "head 1 at t: the model's at t + 1, for token t + 2"
    assert torch.allclose(logp[0, 2, 2], own[5], atol=1e-4)
    assert torch.allclose(logq[0, 2, 1], own[2], atol=1e-4), "untrained heads say what the model says at t"
    assert not logp.requires_grad
    loss = heads_loss("ce", logp, logq, ids, torch.ones(1, 6, dtype=torch.bool))
    places = [(t, i) for t in range(6) for i in range(3)]
    known = [float(token_loss("ce", own[t], own[t], ids[0, t + i + 2])) for t, i in places]
    assert float(loss.detach()) == pytest.approx(sum(known) / len(known), rel=1e-4)
    loss.backward()
    assert heads.blocks[0].join.weight.grad is not None


def test_heads_see_tokens_up_to_theirs_and_no_further() -> None:
    model, _ = checkpoints.load(str(SMALL))
    torch.manual_seed(0)
    heads = Heads(96, 2)
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    ids = torch.arange(5, 15)[None]
    changed = ids.clone()
    changed[0, 5] = 99
    found = [
        read(model, heads, {"input_ids": each, "attention_mask": torch.ones_like(each)}, 1.0)[1]
        for each in (ids, changed)
    ]
    same = [
        (t, i) for t in range(7) for i in range(2) if torch.allclose(found[0][0, t, i], found[1][0, t, i], atol=1e-5)
    ]
    assert same == [(t, i) for t in range(7) for i in range(2) if t + i + 1 < 5]


def test_chains_that_leave_what_is_learned_are_masked() -> None:
    assert whole(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0]]), 3).tolist() == [[False, True, True, False]]


def test_trained_heads_are_accepted_more(tmp_path: Path) -> None:
    data, held_out = sums(tmp_path / "data.jsonl", 1, 64), sums(tmp_path / "held.jsonl", 2, 12)
    out = tmp_path / "run"
    options = ("--heads", "--model", SMALL, "--held-out", held_out, "--learning-rate", 3e-3, "--gamma", 2)
    more = ("--steps", 30, "--ce-steps", 20, "--every", 20)
    said = waver(data, "--out", out, *options, *more)
    report = json.loads((out / "report.json").read_text())
    assert report["after"]["accepted"] > report["before"]["accepted"] + 0.05
    assert report["after"]["sampled"][0] > report["before"]["sampled"][0]
    assert "accepted by head" in said
    assert "done already" in waver(data, "--out", out, *options, *more)
    loaded = Heads.load(out / "heads")
    assert loaded.gamma == 2
    assert any(bool(weight.abs().max() > 0) for weight in loaded.blocks[1].parameters())
