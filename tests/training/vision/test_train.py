"""The factory of the bundled model that reads pictures, on a few steps; and what the bundled model has learned."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import waver.training.vision.train
from waver.cli import app
from waver.resources import MODELS
from waver.training.inspect.collapse import inspect_collapse
from waver.training.options import VisionRun
from waver.training.vision.model import IMAGE, tokenizer
from waver.training.vision.pictures import COLOURS, KINDS, SIDE, draw, questions, stencil
from waver.training.vision.train import HELD_OUT, Trainer, pixel_values, train

FEW = VisionRun(see=3, answer=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was not stopped, on small batches."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waver.training.vision.train, "BATCHES", {"see": 2, "answer": 2})
        train(folder, FEW)
        yield folder


def test_pictures_hold_what_is_said_of_them() -> None:
    kinds: Counter[str] = Counter()
    for number in range(200):
        picture = draw(3, number)
        assert np.array_equal(picture.pixels, draw(3, number).pixels)
        assert 1 <= len(picture.things) <= 3
        for thing in picture.things:
            kinds[thing.kind] += 1
            part = picture.pixels[thing.y : thing.y + 8, thing.x : thing.x + 8].astype(int)
            assert (abs(part[stencil(thing.kind)] - COLOURS[thing.colour]) <= 20).all()
        answers = dict(questions(picture))
        assert len(answers["What is in the picture?"].split(" and ")) in (1, 2)
        digits = [thing.kind for thing in picture.things if thing.kind.isdigit()]
        assert answers["Which digit is there?"] == (f"{digits[0]}." if digits else "There is none.")
        seen, colours = picture.patches(4)
        assert (seen > 0).sum() == (colours > 0).sum() == 4 * len(picture.things)
    assert set(kinds) == set(KINDS)
    assert not np.array_equal(draw(3, 1).pixels, draw(4, 1).pixels)


def test_only_answers_are_learned_and_pictures_stand_in_front() -> None:
    trainer = Trainer(FEW)
    picture = draw(1, 0)
    ids, learned = trainer.encode(picture, random.Random(0))
    said = trainer.tokens.decode([i for i, counts in zip(ids, learned, strict=True) if counts])
    assert said.count("<|im_end|>") == 2
    assert "?" not in said
    assert ids.count(trainer.tokens.convert_tokens_to_ids(IMAGE)) == (SIDE // 4) ** 2


def test_the_processor_reads_pictures_as_training_did() -> None:
    trainer = Trainer(FEW)
    picture = draw(1, 0)
    given = trainer.processor(images=[picture.pixels], text=[f"{IMAGE}\n"], return_tensors="pt")
    assert torch.allclose(given["pixel_values"], pixel_values([picture]), atol=1e-5)
    assert given["input_ids"][0].tolist().count(trainer.model.config.image_token_id) == 64


@pytest.mark.parametrize("stop", [2, 3, 5])  # in a lesson, between the two, in the other
def test_a_stopped_run_goes_on_as_if_it_had_not(
    stop: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def stopping(self: Trainer) -> float:
        if self.taken == stop:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", FEW)
    with pytest.raises(ValueError, match="holds another run"):
        train(tmp_path / "cut", replace(FEW, answer=4))
    train(tmp_path / "cut", FEW)
    wanted, found = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "cut"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()
    train(tmp_path / "cut", FEW)  # nothing is left to do


def test_the_seed_of_the_test_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stay unseen"):
        train(tmp_path, replace(FEW, seed=HELD_OUT))
    assert CliRunner().invoke(app, ["train", "vision", "--out", str(tmp_path), "--see", "0"]).exit_code == 2


@torch.inference_mode()
def test_the_bundled_model_sees() -> None:
    """Of 40 unseen pictures it names what is there, most of the time: chance would be none."""
    folder = MODELS / "vision"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    pictures = [draw(HELD_OUT, number) for number in range(40)]
    given = processor(images=[picture.pixels for picture in pictures], text=[text] * len(pictures), return_tensors="pt")
    made = model.generate(**given, max_new_tokens=20, do_sample=False)
    said = processor.batch_decode(made[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [one.strip() == picture.caption for one, picture in zip(said, pictures, strict=True)]
    assert sum(right) >= 30, list(zip(said, [p.caption for p in pictures], strict=True))
    assert tokenizer().get_vocab() == processor.tokenizer.get_vocab()


def test_the_collapse_layer_of_the_bundled_model_is_found() -> None:
    layer, entropies = inspect_collapse(str(MODELS / "vision"), [], drawn=4)
    assert len(entropies) == 6
    assert layer == 1
    with pytest.raises(ValueError, match="takes no pictures"):
        inspect_collapse(str(MODELS / "small"), [])


def test_the_command_reads_a_folder_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(2):
        Image.fromarray(draw(5, number).pixels).resize((90, 40)).save(tmp_path / f"{number}.png")
    done = CliRunner().invoke(app, ["inspect", "collapse", str(MODELS / "vision"), "--images", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert '{"name": "entropy_prune", "layer": 1}' in done.output
    (tmp_path / "2.png").write_bytes(b"no picture")
    refused = CliRunner().invoke(app, ["inspect", "collapse", str(MODELS / "vision"), "--images", str(tmp_path)])
    assert refused.exit_code == 1
    assert "2.png is no image that can be read" in refused.output
