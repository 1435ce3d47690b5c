"""The builders of policies."""

from __future__ import annotations

import pytest

from waver.clients import policies as builders
from waver.policies import registry


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
