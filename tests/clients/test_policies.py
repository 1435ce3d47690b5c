"""The typed builders name exactly what the server's policies take."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from pydantic import BaseModel

from waver.clients import policies as builders
from waver.policies import registry

PARAMETERS = {
    "ead": builders.EadParameters,
    "random_switch": builders.RandomSwitchParameters,
    "route": builders.RouteParameters,
    "diffadapt": builders.DiffAdaptParameters,
    "forced_answer": builders.ForcedAnswerParameters,
    "l_rag": builders.LRagParameters,
    "top_w": builders.TopWParameters,
    "top_p": builders.PParameters,
    "min_p": builders.PParameters,
    "typical": builders.PParameters,
    "eta": builders.EpsilonParameters,
    "epsilon": builders.EpsilonParameters,
    "top_n_sigma": builders.TopNSigmaParameters,
    "top_h": builders.TopHParameters,
    "adaptive_temperature": builders.AdaptiveTemperatureParameters,
}


def kinds(hint: Any) -> set[Any]:
    """A type hint's parts: `float | None` -> {float, None}; a Literal's values."""
    if get_origin(hint) in (UnionType, Union):
        return {None if part is type(None) else part for part in get_args(hint)}
    if is_typeddict(hint):
        return {(key, *kinds(part)) for key, part in get_type_hints(hint).items()}
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return {(key, *kinds(field.annotation)) for key, field in hint.model_fields.items()}
    return set(get_args(hint)) if get_origin(hint) is Literal else {hint}


def test_every_policy_of_the_server_has_a_builder() -> None:
    assert set(PARAMETERS) == set(registry.policies())


@pytest.mark.parametrize("name", PARAMETERS)
def test_builder_takes_the_servers_parameters(name: str) -> None:
    fields = {key: field.annotation for key, field in registry.policies()[name].model_fields.items() if key != "name"}
    hints = get_type_hints(PARAMETERS[name])
    assert set(hints) == set(fields) == set(registry.policies()[name].model_json_schema()["properties"]) - {"name"}
    assert {key: kinds(hint) for key, hint in hints.items()} == {key: kinds(hint) for key, hint in fields.items()}


def test_only_what_is_given_is_sent() -> None:
    assert builders.ead() == {"name": "ead"}
    assert builders.ead(threshold=0.3, threshold_down=None) == {"name": "ead", "threshold": 0.3, "threshold_down": None}
    assert builders.random_switch(rate=0.25) == {"name": "random_switch", "rate": 0.25}
    for name in PARAMETERS:
        assert getattr(builders, name)() == {"name": name}
    assert builders.diffadapt(easy={"share": 0.3}) == {"name": "diffadapt", "easy": {"share": 0.3}}
    assert builders.route(small="a", large="b") == {"name": "route", "small": "a", "large": "b"}
