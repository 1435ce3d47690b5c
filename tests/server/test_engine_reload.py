"""A running server loads a model again: new answers get it, answers that have begun end with the old one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Running, until
from waver.server.tenants.audit import entries

CHAT = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "policy": []}
PATH = "/v1/admin/engines/small/reload"


@pytest.fixture
def served(
    start: Callable[..., Running], tiny_config: dict[str, Any], tiny_pair: dict[str, Path], tmp_path: Path
) -> tuple[Running, Path]:
    """A server whose small model lies in a folder of the test's own, and that folder."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair["small"], folder)
    engines = tiny_config["engines"] | {"small": {"backend": "transformers", "model": str(folder)}}
    return start(config={"engines": engines, "state": str(tmp_path / "state")}), folder


def change_weights(folder: Path) -> None:
    """Turn the final norm's signs, so that what was likely is unlikely; the file is replaced, as `waver edit` does."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data.neg_()
    model.save_pretrained(folder / "new")
    for file in (folder / "new").iterdir():
        os.replace(file, folder / file.name)
    (folder / "new").rmdir()


def test_new_answers_get_the_new_weights_and_running_ones_the_old(served: tuple[Running, Path]) -> None:
    running, folder = served
    here = running.runtime
    with running.http() as http:
        before = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 300, "ignore_eos": True}).json()
        old = here.engines["small"]
        change_weights(folder)
        with running.openai() as client:
            stream = client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=300,
                stream=True, extra_body={"policy": [], "ignore_eos": True},
            )  # fmt: skip
            texts = [next(stream).choices[0].delta.content or ""]
            done = http.post(PATH)
            assert done.status_code == 200, done.text
            assert (done.json()["object"], done.json()["name"]) == ("engine.reload", "small")
            texts += [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(texts) == before["choices"][0]["message"]["content"]
        after = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 300, "ignore_eos": True}).json()
        assert after["choices"][0]["message"]["content"] != before["choices"][0]["message"]["content"]
        assert after["system_fingerprint"] != before["system_fingerprint"]
        assert here.engines["small"] is not old
        until(lambda: not old.alive, "the old engine's end", 30)
        assert not here.retiring
        (entry,) = (each for each in entries(here.database, 10, None) if each["action"] == "engine.reload")
        assert entry["subject"] == "small"
        # The pair works on, with the new engine in the old one's place.
        pair = http.post("/v1/chat/completions", json={**CHAT, "policy": [{"name": "ead", "threshold": 0.0}]})
        assert pair.status_code == 200


def test_what_cannot_be_loaded_changes_nothing(served: tuple[Running, Path]) -> None:
    running, folder = served
    engine = running.runtime.engines["small"]
    with running.http() as http:
        gone = http.post("/v1/admin/engines/none/reload")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "engine_not_found")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(folder)
        other = http.post(PATH)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "engine_not_reloaded")
        assert "another tokenizer" in other.json()["error"]["message"]
        (folder / "model.safetensors").write_bytes(b"no weights")
        broken = http.post(PATH)
        assert broken.status_code == 409
        assert "cannot load" in broken.json()["error"]["message"]
        assert running.runtime.engines["small"] is engine
        assert engine.alive
        assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3}).status_code == 200
        assert http.get("/ready").status_code == 200
