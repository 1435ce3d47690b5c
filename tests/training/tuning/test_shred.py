"""SHRED: selection, targets and loss by the worked example, and forgetting that spares what is next to it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from waver.benchmarks.weights_toys import forgotten, planted
from waver.training.texts import Text, padded
from waver.training.tuning.shred import (
    Demotion,
    batch_of,
    demote,
    demoted_positions,
    divergence,
    lessons,
    loss,
    token_probabilities,
)
from waver.training.tuning.unlearning import ascent_loss, min_k, npo_loss, sequence_logprob

P = torch.tensor([[0.77, 0.12, 0.05, 0.03, 0.03]], dtype=torch.float64)
IDS = torch.arange(5).unsqueeze(0)
TRUE, MARKED = torch.tensor([0]), torch.tensor([True])


def target(nucleus: float | None = None) -> torch.Tensor:
    return demote(IDS, P, TRUE, MARKED, nucleus)


@pytest.mark.parametrize(
    ("nucleus", "wanted"),
    [
        (None, [0, 0.5217391, 0.2173913, 0.1304348, 0.1304348]),
        (0.9, [0, 0, 0, 0.5, 0.5]),
        (0.5, [0, 0.5217391, 0.2173913, 0.1304348, 0.1304348]),
        (0.8, [0, 0, 0.4545455, 0.2727273, 0.2727273]),
    ],
)
def test_targets(nucleus: float | None, wanted: list[float]) -> None:
    assert target(nucleus)[0].tolist() == pytest.approx(wanted, abs=1e-7)
    assert torch.allclose(demote(IDS, P, TRUE, ~MARKED, nucleus), P)


def test_the_divergence_and_its_gradient() -> None:
    logits = P.log().requires_grad_()
    found = divergence(logits, IDS, target())
    assert found.tolist() == pytest.approx([1.4696759], abs=1e-7)
    assert found.tolist() == pytest.approx([-math.log(1 - 0.77)])
    assert divergence(logits, IDS, target(0.9)).tolist() == pytest.approx([2.8134108], abs=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[0].tolist() == pytest.approx([0.77, -0.4017391, -0.1673913, -0.1004348, -0.1004348], abs=1e-7)


def test_only_the_likeliest_are_kept() -> None:
    top = P.topk(3)
    kept = demote(top.indices, top.values, TRUE, ~MARKED)
    assert kept[0].tolist() == pytest.approx([0.8191489, 0.1276596, 0.0531915], abs=1e-7)
    assert float(divergence(P.log(), top.indices, kept)) == pytest.approx(0.0618754, abs=1e-7)
    gone = demote(top.indices, top.values, TRUE, MARKED)
    assert gone[0].tolist() == pytest.approx([0, 0.7058824, 0.2941176], abs=1e-7)
    assert float(divergence(P.log(), top.indices, gone)) == pytest.approx(-math.log(0.17), abs=1e-7)


def test_what_is_not_among_them_is_not_demoted_and_nothing_left_counts_nothing() -> None:
    top = P.topk(2)
    assert torch.allclose(demote(top.indices, top.values, torch.tensor([4]), MARKED).sum(-1), torch.ones(1).double())
    empty = demote(top.indices, top.values, TRUE, MARKED, nucleus=0.99)
    assert empty.tolist() == [[0, 0]]
    assert float(divergence(P.log(), top.indices, empty)) == 0


def test_which_tokens_are_demoted() -> None:
    probability = torch.tensor([0.01, 0.02, 0.9, 0.1, 0.5, 0.03, 0.99])
    assert demoted_positions(probability, 50, 2).nonzero().flatten().tolist() == [3, 4, 5]
    assert int(demoted_positions(probability, 100).sum()) == 7
    assert int(demoted_positions(probability, 0).sum()) == 0
    assert int(demoted_positions(probability[:1], 50, 2).sum()) == 0


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, max_position_embeddings=64, initializer_range=0.3, **sizes)
    ).eval()


def test_a_batch_of_lessons_is_what_its_texts_say(model: LlamaForCausalLM) -> None:
    texts = [Text(tuple(range(5, 25)), 1), Text(tuple(range(8, 20)), 7)]
    made = lessons(model, texts, Demotion(top=50, skip=4))
    assert [int(each.demoted.sum()) for each in made] == [math.ceil(0.25 * 16), math.ceil(0.5 * 5)]
    assert not made[0].demoted[:3].any()  # the first four tokens, of which the first has no probability
    batch = batch_of(made)
    assert batch["counts"].sum(-1).tolist() == [19, 5]
    assert batch["counts"][1].nonzero().flatten().tolist() == list(range(6, 11))
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # With all of the vocabulary kept, only the demoted positions cost anything: -log of what is left of them.
    wanted = sum(-float((1 - each.probability[each.demoted]).log().sum()) for each in made) / 24
    assert float(loss(logits, batch)) == pytest.approx(wanted, rel=1e-4)
    probability = token_probabilities(model, texts, batch=1)
    assert torch.allclose(probability[0], made[0].probability, atol=1e-6)
    reference = lessons(model, texts, Demotion(top=50, skip=4), reference=model)
    assert torch.equal(reference[0].demoted, made[0].demoted)


def test_losses_of_the_baselines() -> None:
    labels = padded([Text((1, 2, 3), 1), Text((1, 2, 3, 0), 3)])["labels"]
    logits = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logprob = sequence_logprob(logits, labels)
    sums = logprob.detach()
    logs = logits.detach().float().log_softmax(-1)
    assert sums.tolist() == pytest.approx([float(logs[0, 0, 2] + logs[0, 1, 3]), float(logs[1, 2, 0])])
    assert float(ascent_loss(sums, labels)) == pytest.approx(float(sums.sum()) / 3)
    # Where nothing has changed yet NPO is 2/beta log 2, and its gradient is that of the log-probability.
    assert float(npo_loss(sums, sums)) == pytest.approx(20 * math.log(2))
    (npo,) = torch.autograd.grad(npo_loss(logprob, sums), logits, retain_graph=True)
    (plain,) = torch.autograd.grad(logprob.mean(), logits)
    assert torch.allclose(npo, plain)
    assert float(npo_loss(sums - 100, sums)) == pytest.approx(0, abs=1e-2)


def test_the_score_of_the_membership_attack() -> None:
    assert min_k(torch.tensor([0.5, 0.1, 0.9, 0.9, 0.9])) == pytest.approx(math.log(0.1))


def test_forgetting_spares_what_is_next_to_it() -> None:
    """One seed of three (`waver bench weights`), of a model that saw the documents as often in half the steps."""
    known = planted(0, steps=350, each=2)
    ours, ascent = (forgotten(known, how, 0) for how in ("shred", "ascent"))
    anywhere = forgotten(known, "random", 0, limit=100)
    assert 0.3 < known.secrets(known.model, slice(0, 20)) < 0.5
    assert ours["secrets"] <= 0.10 < anywhere["secrets"]
    assert ours["selected"] > 0.8
    assert ours["grammar_rise"] < anywhere["grammar_rise"] / 5 + 0.01
    assert ours["others_kept"] > ascent["others_kept"] + 0.2
