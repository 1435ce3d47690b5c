"""The builders of policies, and that what lists them says what the server has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from waver.clients import policies as builders
from waver.policies import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location("policy_tables", ROOT / "docs" / "policy_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_lists_the_policies_is_up_to_date(tables: Any) -> None:
    assert list(tables.outdated()) == [], "run python docs/policy_tables.py"


def test_a_change_would_be_noticed(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = registry.policies()["ead"]
    monkeypatch.setattr(kind, "__doc__", "Something else.")
    assert {file.name for file in tables.outdated()} >= {"policies.md", "policies.pyi"}


def test_only_what_is_given_is_sent() -> None:
    assert builders.ead() == {"name": "ead"}
    assert builders.ead(threshold=0.3, threshold_down=None) == {"name": "ead", "threshold": 0.3, "threshold_down": None}
    assert builders.random_switch(rate=0.25) == {"name": "random_switch", "rate": 0.25}
    assert builders.diffadapt(easy={"share": 0.3}) == {"name": "diffadapt", "easy": {"share": 0.3}}
    assert builders.policy("toy", k=1) == builders.toy(k=1) == {"name": "toy", "k": 1}  # type: ignore[attr-defined]
    for name in registry.policies():
        assert getattr(builders, name)() == {"name": name}
    with pytest.raises(AttributeError):
        builders.__wrapped__  # type: ignore[attr-defined]  # noqa: B018
