"""The JSON Schema of a configuration takes what the server takes, and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from waver.engines.config import LoraConfig, TransformersConfig, UpstreamConfig, VllmConfig
from waver.policies.registry import policies
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.memory.config import MemoryConfig
from waver.server.config import Config, load_config
from waver.server.config_schema import config_schema
from waver.server.settings import ServerConfig

CONFIGS = Path(__file__).parents[2] / "configs"
HEAD = {"engines": {"small": {"model": "x/small"}, "large": {"model": "x/large"}}}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"presets": {"p": [{"name": name} for name in ("ead", "top_h")]}, "default_preset": "p"},
        {"engines": {"a": {"backend": "vllm", "model": "m", "args": {"anything": 1}}}},
        {"engines": {"a": {"backend": "openai", "model": "m", "base_url": "https://u/v1"}}},
        {"policies": {"ead": {"threshold": 0.3}, "diffadapt": {"easy": {"words": "Now."}}}},
        {"pinned": {"*": [{"name": "safeharbor"}]}},
        {"server": {"port": 1, "api_keys_file": None}},
    ],
)
def test_what_the_server_takes(validator: Any, content: dict[str, Any], tmp_path: Path) -> None:
    whole = HEAD | content
    assert [error.message for error in validator.iter_errors(whole)] == []
    file = tmp_path / "waver.yaml"
    file.write_text(yaml.safe_dump(whole))
    load_config(file)


@pytest.mark.parametrize(
    "content",
    [
        {"sever": {}},
        {"engines": {}},
        {"engines": {"a": {}}},
        {"engines": {"a b": {"model": "m"}}},
        {"engines": {"a": {"model": "m", "args": {}}}},
        {"engines": {"a": {"backend": "openai", "model": "m"}}},
        {"engines": {"a": {"backend": "magic", "model": "m"}}},
        {"presets": {"p": {"name": "ead"}}},
        {"presets": {"p": [{"name": "eadd"}]}},
        {"presets": {"p": [{"name": "ead", "threshold": -1}]}},
        {"presets": {"p": [{"name": "ead", "thresholdd": 1}]}},
        {"presets": {"p": [{"threshold": 1}]}},
        {"pinned": {"*": [{"name": "ead", "window": 0}]}},
        {"policies": {"eadd": {}}},
        {"policies": {"ead": {"window": 0}}},
        {"server": {"port": 99999}},
        {"server": {"prot": 1}},
        {"retrieval": {"store": "other"}},
        {"memory": {"max_turns": 1}},
    ],
)
def test_what_the_server_refuses(validator: Any, content: dict[str, Any]) -> None:
    assert not validator.is_valid(HEAD | content)


def test_shipped_files_are_valid_and_name_the_schema(validator: Any) -> None:
    files = sorted(CONFIGS.glob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        assert [error.message for error in validator.iter_errors(yaml.safe_load(file.read_text()))] == []
        assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def test_every_policy_and_every_option_is_described() -> None:
    schema = config_schema()
    assert {f"policy_{name}" for name in policies()} <= set(schema["$defs"])
    models: list[type[BaseModel]] = [
        Config, ServerConfig, RetrievalConfig, MemoryConfig, TransformersConfig, VllmConfig, LoraConfig, UpstreamConfig,
    ]  # fmt: skip
    bare = {f"{m.__name__}.{name}" for m in models for name, field in m.model_fields.items() if not field.description}
    assert {name for name in bare if not name.endswith(".backend")} == set()
