"""Probes: the network's numbers, files that are damaged, and engines that a probe does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine, Unsupported
from waver.engines.probe import Probe, Record, reference_ids

MODELS = Path(__file__).parents[2] / "models"
EXAMPLE = {
    "W1": torch.tensor([[1.0, -1.0], [0.5, 0.5], [-1.0, 2.0]]),
    "b1": torch.tensor([0.0, -0.5, 0.25]),
    "W2": torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-0.5, 0.5, 1.0]]),
    "b2": torch.tensor([0.1, 0.0, -0.1]),
}
RECORD = Record(model="large", words="This question is", labels="paper")


def random(hidden: int, ids: tuple[int, ...] = (1, 2), state: torch.Tensor | None = None, width: int = 512) -> Probe:
    shapes = {"W1": (width, hidden), "b1": (width,), "W2": (3, width), "b2": (3,)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    return Probe(weights, RECORD, ids, torch.randn(hidden) if state is None else state)


@pytest.fixture(scope="module")
def pair() -> dict[str, Engine]:
    config = {name: TransformersConfig(model=str(MODELS / name), dtype="float32") for name in ("small", "large")}
    return {name: load_engine(name, each) for name, each in config.items()}


def test_the_numbers_of_a_worked_example() -> None:
    probe = Probe(EXAMPLE, RECORD, (1,), torch.tensor([2.0, 1.0]))
    logits = probe(probe.state)
    torch.testing.assert_close(logits, torch.tensor([0.85, 1.0, 0.15]))
    torch.testing.assert_close(logits.softmax(-1), torch.tensor([0.3761634, 0.4370395, 0.1867968]))
    torch.testing.assert_close(probe(torch.stack([probe.state, probe.state]).bfloat16())[1], logits)


@pytest.mark.parametrize(
    ("hidden", "parameters"), [(1536, 788_483), (2560, 1_312_771), (3584, 1_837_059), (4096, 2_099_203)]
)
def test_its_size(hidden: int, parameters: int) -> None:
    probe = random(hidden)
    assert probe.hidden == hidden
    assert sum(weight.numel() for weight in probe.weights.values()) == parameters


def test_saved_and_loaded(tmp_path: Path) -> None:
    probe = random(8)
    probe.save(tmp_path / "probe")
    loaded = Probe.load(tmp_path / "probe")
    assert (loaded.record, loaded.ids) == (RECORD, (1, 2))
    state = torch.randn(8)
    torch.testing.assert_close(loaded(state), probe(state), rtol=0, atol=0)


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no probe: probe\.json is missing"):
        Probe.load(tmp_path)
    random(8).save(tmp_path)
    tensors = tmp_path / "probe.safetensors"
    whole = tensors.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no tensors"):
        tensors.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            Probe.load(tmp_path)
    two = replace(random(8), record=RECORD.model_copy(update={"classes": ("calm", "upset")}))
    for damaged in (random(8, state=torch.randn(9)), two):
        damaged.save(tmp_path)
        with pytest.raises(ValueError, match="do not fit together"):
            Probe.load(tmp_path)
    random(8).save(tmp_path)
    for content in ("{", '{"model": "x"}', '{"model": "x", "words": "", "labels": "paper", "more": 1}'):
        (tmp_path / "probe.json").write_text(content)
        with pytest.raises(ValueError, match=r"cannot be read: .+"):
            Probe.load(tmp_path)


async def test_one_fits_its_model_and_template(pair: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    large = pair["large"]
    ids = reference_ids(large, RECORD.words)
    state = await large.hidden_state(ids)
    probe = random(len(state), ids, state, width=4)
    reads: list[str] = []
    for name, engine in pair.items():

        async def read(ids: Any, depth: float | None = None, name: str = name, inner: Any = engine.hidden_state) -> Any:
            reads.append(name)
            return await inner(ids, depth)

        monkeypatch.setattr(engine, "hidden_state", read)
    for _ in range(3):
        await probe.check(large)
        with pytest.raises(Unsupported, match="trained on large, which engine 'small' does not run"):
            await probe.check(pair["small"])
    assert reads == ["large", "small"], "once for each engine"
    other = random(len(state), (*ids[:-1], ids[-1] + 1), state, width=4)
    with pytest.raises(Unsupported, match="another chat template or tokenizer"):
        await other.check(large)
    shifted = random(len(state), ids, torch.randn(len(state)), width=4)
    with pytest.raises(Unsupported, match="does not run"):
        await shifted.check(large)
    nearly = random(len(state), ids, state + 0.01 * torch.randn(len(state)) * state.std(), width=4)
    await nearly.check(large)
