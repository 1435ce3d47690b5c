"""A model that cannot be loaded is refused with a sentence that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.engines.driving import generated, prompts, tokens
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine
from waver.engines.transformers import TransformersEngine


@pytest.fixture
def copy(wild_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wild_directory, tmp_path / "model"))


def refused(path: Path | str, **options: object) -> str:
    with pytest.raises(ValueError, match=r"engine 'e': cannot load") as caught:
        load_engine("e", TransformersConfig(model=str(path), **options))
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_nothing_there(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere")
    refused(tmp_path)


def test_broken_files(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(copy)
    (copy / "config.json").write_text("{")
    refused(copy)


def test_not_a_language_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "nothing_known"}))
    assert "nothing_known" in refused(copy)


def test_pickled_weights(copy: Path, wild: TransformersEngine) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(wild.model.state_dict(), copy / "pytorch_model.bin")
    assert "safetensors" in refused(copy)


def test_code_beside_the_weights_does_not_run(copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (copy / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('ran')")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy)
    assert not canary.exists()


def test_bad_device_and_options(copy: Path) -> None:
    refused(copy, device="nonsense")
    with pytest.raises(ValidationError, match="max_sequences"):
        TransformersConfig(model="x", max_sequences=0)
    with pytest.raises(ValidationError, match="speed"):
        TransformersConfig(model="x", speed=3)  # type: ignore[call-arg]


async def test_loaded(load: Callable[..., TransformersEngine]) -> None:
    engine = load(max_model_len=40)
    assert isinstance(engine, Engine)
    assert engine.parameters == sum(p.numel() for p in engine.model.parameters())
    assert (engine.name, engine.context_length, engine.active) == ("wild", 40, 0)
    assert load(max_model_len=10_000).context_length == 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision(dtype: str, load: Callable[..., TransformersEngine]) -> None:
    engine, prompt = load(dtype=dtype), prompts(1, seed=40)[0]
    assert str(engine.model.dtype) == f"torch.{dtype}"
    assert type(engine._runner).__name__ == "SlotRunner"
    assert (await tokens(engine, prompt))[:3] == generated(engine, prompt, 3)
