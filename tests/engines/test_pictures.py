"""Prompts with pictures in the embedded engine: what they are made of, and that answers equal transformers' own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.pictures import picture, save_seeing
from waver.benchmarks import random_idefics
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Gate, Sampling, Step, Unsupported
from waver.engines.pictures import Picture, Pruning
from waver.engines.transformers import TransformersEngine
from waver.engines.vision import Vision, image

GREEDY = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeing(tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine("see", TransformersConfig(model=str(folder)))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def vision(engine: TransformersEngine) -> Vision:
    assert engine.vision is not None
    return engine.vision


def prompt(engine: TransformersEngine, *numbers: int, said: str = "What is there?") -> tuple[list[int], Sampling]:
    parts = [{"type": "image"} for _ in numbers]
    ids = engine.tokens.chat([{"role": "user", "content": [*parts, {"type": "text", "text": said}]}])
    placed, pictures = vision(engine).place(ids, [picture(number) for number in numbers])
    return placed, replace(GREEDY, pictures=pictures)


async def steps(engine: TransformersEngine, ids: Sequence[int], sampling: Sampling) -> list[Step]:
    return [step async for step in engine.generate(ids, sampling)]


def tokens(made: Sequence[Step]) -> list[int]:
    return [step.token for step in made]


@torch.inference_mode()
def reference(model: Any, folder: Path, numbers: Sequence[int], said: str = "What is there?") -> list[int]:
    """Generate with transformers alone: its processor, its template, its loop."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    content = [*({"type": "image"} for _ in numbers), {"type": "text", "text": said}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [image(picture(number)) for number in numbers]
    given = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
    barred = [[model.config.image_token_id]]
    made = model.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=None, bad_words_ids=barred)
    return list(made[0, given["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("numbers", [(0,), (3, 4)])
async def test_answers_equal_those_of_transformers(
    engine: TransformersEngine, model: Any, folder: Path, numbers: tuple[int, ...]
) -> None:
    ids, sampling = prompt(engine, *numbers)
    assert len(sampling.pictures) == len(numbers)
    assert all(len(each.tokens) == 64 for each in sampling.pictures)
    assert tokens(await steps(engine, ids, sampling)) == reference(model, folder, numbers)


async def test_a_model_that_cuts_pictures_into_tiles_answers_the_same(tmp_path: Path) -> None:
    """The model that `waver bench vllm-pictures` runs under vLLM, too."""
    random_idefics.save(tmp_path)
    engine = TransformersEngine("see", TransformersConfig(model=str(tmp_path), dtype="float32"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids, sampling = prompt(engine, 3, 4)
    assert [each.tokens.count(vision(engine).image_token) for each in sampling.pictures] == [5 * 16] * 2
    assert tokens(await steps(engine, ids, sampling)) == reference(model, tmp_path, (3, 4))


async def test_neighbours_in_a_batch_do_not_see_each_others_pictures(engine: TransformersEngine) -> None:
    jobs = [prompt(engine, 0), prompt(engine, 1), prompt(engine, 0, 1), (engine.tokens.encode("Hello"), GREEDY)]
    alone = [tokens(await steps(engine, *job)) for job in jobs]
    together = await asyncio.gather(*(steps(engine, *job) for job in jobs))
    assert [tokens(made) for made in together] == alone
    assert alone[0] != alone[1]  # the ids are the same, the pictures are not


async def test_a_later_segment_reads_the_picture_no_more(engine: TransformersEngine) -> None:
    ids, sampling = prompt(engine, 2)
    whole = tokens(await steps(engine, ids, sampling))
    first = await steps(engine, ids, replace(sampling, gate=Gate(1, 0.0, min_tokens=3)))
    assert first[-1].finish == "gate"
    written = tokens(first[:-1])
    before = engine.read_tokens
    rest = await steps(engine, [*ids, *written], replace(sampling, answer_start=len(ids)))
    assert [*written, *tokens(rest)] == whole
    assert engine.read_tokens - before == 8 - len(written)


def test_the_words_of_a_user_stand_for_no_picture(engine: TransformersEngine) -> None:
    ids, sampling = prompt(engine, 0, said="<image> What <|im_end|>?")
    assert ids.count(vision(engine).image_token) == 64
    assert "<image> What <|im_end|>?" in engine.tokens.tokenizer.decode(ids)
    assert vision(engine).collapse(ids, sampling.pictures).count(vision(engine).image_token) == 1


async def test_what_has_tokens_without_pictures_is_refused(engine: TransformersEngine) -> None:
    ids, sampling = prompt(engine, 0)
    for work in (steps(engine, ids, GREEDY), engine.score(ids), engine.hidden_state(ids), engine.attention(ids, 1)):
        with pytest.raises(Unsupported, match="does not take the pictures along"):
            await work
    with pytest.raises(Unsupported, match="other pictures than the request"):
        await steps(engine, ids, replace(sampling, pictures=(*sampling.pictures, *sampling.pictures)))
    with pytest.raises(Unsupported, match="1 places for 2 pictures"):
        vision(engine).place([vision(engine).placeholder], [picture(0), picture(1)])


async def test_engines_of_texts_refuse_pictures(small: TransformersEngine, engine: TransformersEngine) -> None:
    _, sampling = prompt(engine, 0)
    with pytest.raises(Unsupported, match="engine 'small' takes no pictures"):
        small.check(sampling, False)
    with pytest.raises(Unsupported, match="drops no image tokens"):
        await steps(small, [5, 6], replace(GREEDY, pruning=Pruning(1, 0.5)))


async def test_a_model_without_its_processor_answers_texts(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, ignore=shutil.ignore_patterns("processor_config.json"), dirs_exist_ok=True)
    engine = TransformersEngine("blind", TransformersConfig(model=str(tmp_path)))
    assert engine.vision is None
    assert len(await steps(engine, engine.tokens.encode("Hello"), GREEDY)) == 8
    await engine.aclose()


def test_a_template_of_parts_alone_gets_texts_as_parts(folder: Path, tmp_path: Path) -> None:
    source = (
        "{% for message in messages %}{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
        "<image>{% endfor %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ part['text'] }}{% endfor %}{% endfor %}"
    )
    (tmp_path / "t.jinja").write_text(source)
    (tmp_path / "none.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    config = TransformersConfig(model=str(folder), chat_template=str(tmp_path / "t.jinja"))
    engine = load_engine("parts", config)
    assert engine.tokens.content_as_parts
    assert engine.tokens.decode(engine.tokens.chat([{"role": "user", "content": "Hello"}])) == "Hello"
    with pytest.raises(ValueError, match="leaves no place for a picture"):
        load_engine("none", config.model_copy(update={"chat_template": str(tmp_path / "none.jinja")}))


async def test_dropped_tokens_are_told_once_and_all_kept_change_nothing(engine: TransformersEngine) -> None:
    ids, sampling = prompt(engine, 0, 1)
    plain = await steps(engine, ids, sampling)
    kept = await steps(engine, ids, replace(sampling, pruning=Pruning(2, 1.0)))
    assert tokens(kept) == tokens(plain)
    cut = await steps(engine, ids, replace(sampling, pruning=Pruning(2, 0.5)))
    assert cut[0].pruned is not None
    assert (cut[0].pruned.layer, cut[0].pruned.before, cut[0].pruned.after) == (2, 128, 32)
    assert all(step.pruned is None for step in (*cut[1:], *plain))
    assert tokens(cut) != tokens(plain)


async def test_a_pruned_answer_goes_on_as_it_began(engine: TransformersEngine) -> None:
    """A segment that brings several tokens at once, as after a hand-over, goes on from the pruned cache."""
    ids, sampling = prompt(engine, 0)
    cut = replace(sampling, pruning=Pruning(2, 0.5))
    whole = tokens(await steps(engine, ids, cut))
    first = tokens((await steps(engine, ids, replace(cut, gate=Gate(1, 0.0, min_tokens=2))))[:-1])
    foreign = [*first, *whole[len(first) : len(first) + 3]]
    rest = await steps(engine, [*ids, *foreign], replace(cut, answer_start=len(ids)))
    assert [*foreign, *tokens(rest)] == whole


def test_pruning_is_checked_before_the_first_token(engine: TransformersEngine) -> None:
    _, sampling = prompt(engine, 0)
    with pytest.raises(Unsupported, match="from 1 to 5, not 6"):
        engine.check(replace(sampling, pruning=Pruning(6, 0.5)), False)


def test_pictures_compare_by_their_digest() -> None:
    one = picture(0)
    assert one == replace(one, rgb=b"")
    assert one != Picture(32, 32, one.rgb, "other")
