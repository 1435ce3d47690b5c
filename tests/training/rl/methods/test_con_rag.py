"""PS-GRPO: reference figures, and a table that learns to say the same to every wording."""

from __future__ import annotations

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.training.rl import make_recipe
from waver.training.rl.loss import clipped_loss, k3
from waver.training.rl.methods.con_rag import advantages

REWARD = torch.tensor([0.378445, 0.434422, 0.122626, 0.222222, 0.455960, 0.333333], dtype=F64)
GROUP = torch.tensor([3, 3, 3, 5, 5, 5])


def test_the_advantages() -> None:
    figures = [0.490799, 0.903224, -1.394023, -1.204145, 1.244354, -0.040209]
    assert advantages(REWARD, GROUP).tolist() == pytest.approx(figures, abs=2e-5)
    sample = [0.400495, 0.737036, -1.137531, -0.982340, 1.015143, -0.032803]
    assert advantages(REWARD, GROUP, sample=True).tolist() == pytest.approx(sample, abs=2e-5)
    b = batch(torch.ones(6, 2), reward=REWARD, group=GROUP)
    assert make_recipe("grpo", ["con_rag"], kl=0.0).advantages(b).advantage[:, 1].tolist() == pytest.approx(
        figures, abs=2e-5
    )


def test_a_group_without_contrast_teaches_nothing() -> None:
    b = batch(torch.ones(4, 1), reward=[0.3, 0.3, 0.1, 0.5], group=[0, 0, 1, 1])
    made = make_recipe("grpo", ["con_rag"], kl=0.0)
    shaped, metrics = made.control(made.advantages(b))
    assert shaped.advantage.flatten().tolist() == pytest.approx([0, 0, -1, 1], abs=1e-6)
    assert metrics["con_rag/silent"] == 0.5


def test_the_loss_is_plain_grpo() -> None:
    terms = -clipped_loss(torch.tensor([0.7, 1.0, 1.5]), torch.tensor([1.0, -1.0, 1.0]))
    assert terms.tolist() == pytest.approx([0.7, -1.0, 1.2])
    assert terms.mean().item() == pytest.approx(0.3)
    found = k3(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.2, -1.5]]), torch.ones(1, 2))
    assert found.tolist()[0] == pytest.approx([0.018731, 0.148721], abs=6e-7)
    s = make_recipe("grpo", ["con_rag"]).settings
    assert (s.clip_low, s.clip_high, s.kl, s.dual_clip, s.aggregation) == (0.2, 0.2, 0.04, None, "seq-mean-token-mean")


def agreement(rule: str, seed: int, steps: int = 400) -> tuple[float, float]:
    """Return the share of pairs of wordings whose top answers agree, and the accuracy of top answers, of a table of 40
    questions, six wordings and eight answers that was trained by a reward.

    Args:
        rule: `own` (agreement with the other answers to the own wording), `others`, or `known`, with correctness.
    """
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(40, 1, 8, generator=g)
    shared[..., 0] += 1.2  # answer 0 is right
    logits = shared + 1.2 * torch.randn(40, 6, 8, generator=g)
    for _ in range(steps):
        p = logits.softmax(-1)
        drawn = torch.multinomial(p.flatten(0, 1), 4, True, generator=g).view(40, 6, 4)
        said = torch.nn.functional.one_hot(drawn, 8).float()
        counts = said.sum(2)
        if rule == "own":
            reward = ((said * counts.unsqueeze(2)).sum(-1) - 1) / 3
        else:
            others = counts.sum(1, keepdim=True) - counts
            reward = (said * others.unsqueeze(2)).sum(-1) / 20
        if rule == "known":
            reward = reward + (drawn == 0)
        group = torch.arange(240).repeat_interleave(4)
        a = advantages(reward.flatten(), group).view(40, 6, 4, 1)
        logits = logits + 0.5 * (a * (said - p.unsqueeze(2))).mean(2)
    top = logits.argmax(-1)
    same = (top.unsqueeze(1) == top.unsqueeze(2)).float().sum((1, 2)) - 6
    return float(same.mean() / 30), float((top == 0).float().mean())


def test_only_the_other_wordings_make_a_table_consistent() -> None:
    """Reference runs: agreement .317 at first, .309 by the own wording's agreement, .986 by that of the others;
    accuracy .33, .41, and .91 with known answers."""
    start, _ = agreement("own", 0, steps=0)
    own, others, known = (agreement(rule, 0) for rule in ("own", "others", "known"))
    assert own[0] < 0.4
    assert abs(own[0] - start) < 0.1
    assert others[0] > 0.9
    assert known[1] > others[1] + 0.3
