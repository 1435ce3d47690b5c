"""docs/vllm.md is run: its requests against a real `vllm serve` with the plugin, its output compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from tests.engines.driving import ROOT
from tests.engines.vllm_here import needs_vllm
from tests.engines.vllm_serving import Served
from waver.engines.base import Gate
from waver.engines.transforms import Transform

pytestmark = [needs_vllm, pytest.mark.timeout(1500)]

PAGE = (ROOT / "docs" / "vllm.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
HERE = "http://127.0.0.1:8000"


def test_the_curl_commands_answer(vllm_serve: Served) -> None:
    gated, truncated = (text for language, text in BLOCKS if language == "sh" and "curl" in text)
    answers = []
    for command in (gated, truncated):
        done = subprocess.run(
            ["bash", "-c", command.replace(HERE, vllm_serve.url)], capture_output=True, text=True, check=True
        )
        answers.append(json.loads(done.stdout)["choices"][0])
    assert answers[0]["finish_reason"] == "stop"
    assert answers[0]["stop_reason"] is not None
    assert answers[1]["stop_reason"] is None


def test_the_snippet_prints_what_is_shown(vllm_serve: Served, tmp_path: Path) -> None:
    script, shown = (next(text for name, text in BLOCKS if name == language) for language in ("python", "text"))
    file = tmp_path / "snippet.py"
    file.write_text(script.replace(HERE, vllm_serve.url))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert done.stdout == shown


def test_every_field_and_every_truncation_is_named() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == {field.name for field in fields(Gate)}
    assert [kind for kind in get_args(Transform) if f"`{kind.model_fields['name'].default}`" not in PAGE] == []
