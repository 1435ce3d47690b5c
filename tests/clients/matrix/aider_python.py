# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["aider-chat==0.86.2"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""aider, which edits a file of a scratch repository.

A small model does not keep to aider's format of its own accord, so a regular expression holds it to that: any field of
a request can be set in aider's file of model settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import KEY, MODEL, V1, check, run

BEFORE = 'def greet():\n    return "hello"\n'
FORM = "greet\\.py\n```\ndef greet\\(\\):\n    return [^`\n]{1,40}\n```\n"
SETTINGS = {
    "name": f"openai/{MODEL}",
    "edit_format": "whole",
    "extra_params": {"max_tokens": 60, "temperature": 0, "extra_body": {"guided_regex": FORM}},
}
OPTIONS = (
    "--yes-always", "--no-show-model-warnings", "--no-check-update", "--no-show-release-notes", "--analytics-disable",
    "--no-gitignore", "--no-auto-commits", "--no-fancy-input", "--map-tokens", "0",
)  # fmt: skip


def edited(*options: str) -> str:
    """Let aider change a file, and return what it holds then."""
    with tempfile.TemporaryDirectory() as folder:
        file, settings = Path(folder, "greet.py"), Path(folder, ".aider.model.settings.yml")
        file.write_text(BEFORE)
        settings.write_text(json.dumps([SETTINGS]))  # JSON is YAML
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        model = ["--model", f"openai/{MODEL}", "--model-settings-file", settings.name]
        told = ["--message", 'Change greet() so that it returns "goodbye".', file.name]
        command = [sys.executable, "-m", "aider", *model, *OPTIONS, *options, *told]
        own = {"OPENAI_API_BASE": V1, "OPENAI_API_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": folder}
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-300:]
        return file.read_text()


@check
def text() -> None:
    assert "goodbye" in edited("--no-stream")


@check
def stream() -> None:
    assert "goodbye" in edited()


if __name__ == "__main__":
    run()
