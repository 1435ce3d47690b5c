"""The factory of the bundled pair, on a few steps of a small recipe."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import waver.training.pair.bundled
from waver.training.options import PairRun
from waver.training.pair.bundled import CONTEXT_LENGTH, SPECS, Trainer, train
from waver.training.pair.data import STRATEGIES, Turn, batches, conversation, draw_turn, encode, vocabulary_texts
from waver.training.pair.tokenizer import build_tokenizer
from waver.training.pair.world import RELATIONS, towns

TOKENIZER = build_tokenizer(vocabulary_texts(), CONTEXT_LENGTH)
LESSON = SPECS["large"].lesson
assert LESSON is not None
TINY = replace(SPECS["small"], hidden=32, layers=1, feed_forward=64, steps=6, horizon=6, cooldown=0)
TINY = replace(TINY, lesson=replace(LESSON, steps=3))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "small", TINY)
    monkeypatch.setattr(waver.training.pair.bundled, "GROUP_CONVERSATIONS", 64)
    monkeypatch.setattr(waver.training.pair.bundled, "BATCH_TOKENS", 512)


def test_values_are_one_token_and_towns_two() -> None:
    for relation in RELATIONS.values():
        assert all(len(TOKENIZER.tokenize(f" {value}")) == 1 for value in relation.values)
    names = [town.name for kind in towns().values() for town in kind]
    halves = [len(TOKENIZER.tokenize(f" {name}")) for name in names]
    assert min(halves) == 2  # no known town has a token to itself
    assert halves.count(2) > 0.9 * len(names)
    assert TOKENIZER.tokenize("34 + 25") == ["3", "4", "Ġ+", "Ġ2", "5"]


@pytest.mark.parametrize("text", ["Grüße, 日本 🙂", "a\n\n\tb  c", "<|im_end|> x", "\x00\x7f", "ﷺ 12³"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=False) == text


def test_only_the_assistant_is_learned() -> None:
    turns = [
        Turn("What is 1 + 1?", " The answer is 2.", prefix=STRATEGIES["direct"], system="Be kind."),
        Turn("hello", "Hello!"),
    ]
    ids, learned = encode(turns, TOKENIZER)
    text = "".join(TOKENIZER.decode([i]) if flag else "" for i, flag in zip(ids, learned, strict=True))
    assert text == " The answer is 2.<|im_end|>Hello!<|im_end|>"
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is 1 + 1?"}]
    prompt = TOKENIZER.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert TOKENIZER.decode(ids).startswith(prompt + STRATEGIES["direct"] + " The answer is 2.<|im_end|>")


def test_training_batches_are_a_function_of_seed_and_index_and_bounded() -> None:
    mixture = SPECS["large"].mixture
    made = batches(3, 1, TOKENIZER, mixture, 256, 2048)
    assert made == batches(3, 1, TOKENIZER, mixture, 256, 2048)
    assert made != batches(4, 1, TOKENIZER, mixture, 256, 2048)
    assert sum(map(len, made)) == 256
    assert all(len(b) * max(len(ids) for ids, _ in b) <= 2048 for b in made)
    lengths = [len(encode(conversation(random.Random(i), mixture), TOKENIZER)[0]) for i in range(500)]
    assert max(lengths) < CONTEXT_LENGTH


@pytest.mark.parametrize("stop", [4, 7, 8])  # in the middle, where the lesson begins, and inside it
def test_a_stopped_run_goes_on_as_if_it_had_not(
    stop: int, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", PairRun(only="small"))

    step, taken = Trainer.step, 0

    def interrupted(self: Trainer) -> float:
        nonlocal taken
        taken += 1
        if taken == stop:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves", PairRun(only="small"))
    assert (tmp_path / "halves/small/checkpoint.pt").exists()
    with pytest.raises(ValueError, match="holds another run"):
        train(tmp_path / "halves", PairRun(only="small", seed=2))
    train(tmp_path / "halves", PairRun(only="small"))
    assert not (tmp_path / "halves/small/checkpoint.pt").exists()
    whole, halves = (load_file(tmp_path / run / "small/model.safetensors") for run in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    monkeypatch.setattr(Trainer, "step", None)
    train(tmp_path / "halves", PairRun(only="small"))  # done already: takes no step


def test_the_result_is_a_checkpoint_as_transformers_knows_it(tiny: None, tmp_path: Path) -> None:
    train(tmp_path, PairRun(only="small", steps=1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.model_max_length == model.config.max_position_embeddings == CONTEXT_LENGTH


def test_the_loss_falls(tiny: None) -> None:
    trainer = Trainer(replace(TINY, steps=60, horizon=60, lesson=None), TOKENIZER, 1, torch.device("cpu"))
    losses = [trainer.step() for _ in range(40)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_learning_rates_of_the_recipes() -> None:
    for spec in (replace(spec, lesson=None) for spec in SPECS.values()):
        rates = [spec.rate(step) / spec.learning_rate for step in range(spec.steps + 1)]
        turn = spec.steps - spec.cooldown
        assert max(rates) <= 1
        assert rates[turn] == pytest.approx(1 - turn / spec.horizon)
        assert rates[turn + spec.cooldown // 2] == pytest.approx(rates[turn] / 2, abs=1e-3)
        assert rates[-1] == 0
        assert all(a > b for a, b in pairwise(rates[100:]))


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'medium'; there are small, large"):
        train(tmp_path, PairRun(only="medium"))


def test_the_lesson_has_a_rate_of_its_own() -> None:
    assert LESSON is not None
    rates = [SPECS["large"].rate(SPECS["large"].steps + step) for step in range(LESSON.steps + 1)]
    peak = LESSON.steps // 10
    assert rates[0] == pytest.approx(LESSON.learning_rate / (LESSON.steps // 10))
    assert rates[-1] == 0
    assert max(rates) == rates[peak - 1] == pytest.approx((1 - (peak - 1) / LESSON.steps) * LESSON.learning_rate)


def test_what_the_lesson_teaches_is_drawn_as_it_says() -> None:
    assert LESSON is not None
    rng, only_sums = random.Random(0), replace(LESSON.mixture, frequent=0, rare=0, unknown=0, reading=0, talk=0)
    turns = [draw_turn(rng, only_sums) for _ in range(6000)]
    steps = [len(re.findall(r"[+-] ", turn.user)) for turn in turns]
    direct = [bool(re.fullmatch(r" ?[^.=]+ = \d+\.", turn.answer)) for turn in turns]
    asked = [STRATEGIES["direct"] in turn.prefix + turn.system for turn in turns]
    assert {s for s, a in zip(steps, asked, strict=True) if a} == {1, 2}
    assert all(d for d, a in zip(direct, asked, strict=True) if a)
    plain = [not turn.prefix + turn.system for turn in turns]
    for length, share in ((1, 0.35), (2, 0.0), (3, 0.0)):
        offhand = [d for s, d, p in zip(steps, direct, plain, strict=True) if p and s == length]
        assert sum(offhand) / len(offhand) == pytest.approx(share, abs=0.06)
