"""Models that vLLM cannot run are refused with a sentence before it is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from waver.engines.vllm.unsupported import refuse_model


def test_an_activation_that_vllm_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "crrelu"}))
    with pytest.raises(ValueError, match=r"vLLM has no activation 'crrelu'.*backend: transformers"):
        refuse_model("mine", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "silu"}))
    refuse_model("mine", str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    refuse_model("mine", str(tmp_path))
    refuse_model("mine", "Some/Hub-Name")
