"""Resolve a request's `model` and `policy` to an engine and a list of policies. Presets are parsed once, at startup."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from waver.engines.tokens import TokenText
from waver.policies.base import STAGES, Policy
from waver.policies.registry import PolicyError, Writer, engines_used, parse
from waver.server.config import Config
from waver.server.errors import APIError, invalid
from waver.server.problems import ConfigError, Place, Problem

PREFIX = "waver/"
POSITION = re.compile(r"policy\[(\d+)\]")
DEFAULT = (None, "default", "waver")
"""Names of a model that mean the default preset."""
INNER = STAGES.index("prompt")
"""The first stage that can run for a part of a request."""


@dataclass(frozen=True)
class Route:
    """A resolved request: the `model` as requested, the engine, and the policies."""

    model: str
    engine: str
    policies: tuple[Policy, ...]
    label: str
    """For the header `x-waver-policy`: a preset's name, the policies' names, or `none`."""
    engines: tuple[str, ...]
    """Names of the engines that may write."""
    preset: str | None
    """The preset that was asked for, or is the default; None where the request lists its policies, or has none."""
    router: Router = field(repr=False, compare=False)
    """The router that resolved it; by now there may be another one, of a configuration that was read since."""
    places: Mapping[str, str]
    """Positions in the request, as `policy[0]`, by the policy's name; empty for a preset."""


@dataclass(frozen=True)
class DeclaredWriter:
    """An engine of the configuration that is not loaded: its tokenizer, if that can be read without the model."""

    tokens: TokenText | None = None
    parameters: int = 0


def declared_writers(config: Config) -> dict[str, DeclaredWriter]:
    """Return stand-ins for the engines of a configuration, by name; nothing is known of their tokenizers."""
    return dict.fromkeys(config.engines, DeclaredWriter())


def policy_problems(config: Config, engines: Mapping[str, Writer], probes: Collection[str]) -> Iterator[Problem]:
    """Check every preset, what is pinned, and the defaults of policies; wrong defaults are told once."""
    usable = dict(config.policies)
    for name, defaults in config.policies.items():
        try:
            parse([{"name": name, **defaults}], engines, probes=probes)
        except PolicyError as error:
            place = ("policies", name, *_inside(error.param)[1:])
            del usable[name]
            yield Problem(f"policies: '{name}': {error.param.partition('.')[2]}: {error}", place)
    for section, kind in (("presets", "preset"), ("pinned", "pinned")):
        for name, items in getattr(config, section).items():
            try:
                parse(items, engines, usable, probes)
            except PolicyError as error:
                yield Problem(f"{kind} '{name}': {error.param}: {error}", (section, name, *_inside(error.param)))


def _inside(param: str) -> Place:
    """Return the place in a list of policies that `policy[0].threshold` names."""
    found = POSITION.match(param)
    fields = param[found.end() :].split(".") if found else []
    return (int(found[1]), *filter(None, fields)) if found else ()


class Router:
    """Resolves requests with the engines, presets and defaults of a configuration."""

    def __init__(self, config: Config, engines: Mapping[str, Writer], probes: Collection[str]) -> None:
        """Resolve every preset.

        Raises:
            ConfigError: a preset or a policy's defaults cannot be used.
        """
        self._config, self._engines, self._probes = config, engines, probes
        if problems := list(policy_problems(config, engines, probes)):
            raise ConfigError(problems)
        self._presets = {name: parse(items, engines, config.policies, probes) for name, items in config.presets.items()}

        for name, chosen in self._presets.items():
            try:
                self._check_helping(chosen, {})
            except PolicyError as error:
                raise ValueError(f"preset '{name}': {error}") from error

    @property
    def presets(self) -> Mapping[str, tuple[Policy, ...]]:
        """Return the policies of every preset, by its name."""
        return self._presets

    @property
    def main_engine(self) -> str:
        """Return the engine of a preset whose policies choose none: the largest."""
        return self._largest(self._engines)

    def route(self, model: str | None, policy: Any = None, key: str | None = None) -> Route:
        """Resolve a request's `model` and `policy`. What the configuration pins for the key with this name goes over
        them.

        Raises:
            APIError: 404, no such model or preset; 400, the policy is neither a name nor a list.
            PolicyError: the policies cannot be run.
        """
        preset, engine = self._model(model)
        asked = model or (PREFIX + preset if preset is not None else engine)
        if policy is not None:
            preset = self._named(policy)
        if preset is not None:
            policies, places, label = self._presets[preset], {}, preset
        else:
            items = policy or []
            policies = parse(items, self._engines, self._config.policies, self._probes)
            places = {item["name"]: f"policy[{i}]" for i, item in enumerate(items)}
            label = ",".join(each.name for each in policies) or "none"
        if pinned := self.pinned(key):
            items = self._config.presets[preset] if preset is not None else policy or []
            policies = parse(_over(items, pinned), self._engines, self._config.policies, self._probes)
            places = {name: place for name, place in places.items() if name not in {each["name"] for each in pinned}}
            label = label if preset is not None else ",".join(each.name for each in policies)
        self._check_helping(policies, places)
        helping = [self._presets[name] for policy in policies for name in policy.helping_presets]
        used = engines_used(policies, engine)
        used = tuple(dict.fromkeys([*used, *(each for own in helping for each in engines_used(own, used[0]))]))
        if engine not in used:  # prompts and text are made with the tokenizer of those who write
            engine = self._largest(used)
        return Route(asked, engine, policies, label, used, preset, self, places)

    def _check_helping(self, policies: Sequence[Policy], places: Mapping[str, str]) -> None:
        """Check the presets that policies hand a part of their work to.

        Raises:
            PolicyError: there is no such preset, or it holds what cannot run inside of a request.
        """
        for policy in policies:
            for name in policy.helping_presets:
                place = places.get(policy.name, "policy")
                if name not in self._presets:
                    shown = ", ".join(self._presets) or "none"
                    raise PolicyError(f"{policy.name}: there is no preset {name[:64]!r}; there are {shown}", place)
                outer = [each.name for each in self._presets[name] if STAGES.index(each.stage) < INNER]
                if outer:
                    raise PolicyError(
                        f"{policy.name}: the preset {name!r} cannot do a part of a request: it has {outer[0]}", place
                    )

    def _model(self, model: str | None) -> tuple[str | None, str]:
        """Find the preset that a model's name refers to, if any, and the engine."""
        preset = self._config.default_preset if model in DEFAULT else None
        if model is not None and model.startswith(PREFIX):
            preset = model.removeprefix(PREFIX)
        if preset is not None:
            engine = self.main_engine
        else:
            engine = next(iter(self._engines)) if model is None or model in DEFAULT else model
        if engine not in self._engines or (preset is not None and preset not in self._presets):
            shown = ", ".join(model_names(self._config))
            asked = model or (PREFIX + preset if preset is not None else engine)
            raise APIError(
                404, f"There is no model '{asked[:80]}'; there are: {shown}.", param="model", code="model_not_found"
            )
        return preset, engine

    def pinned(self, key: str | None) -> list[dict[str, Any]]:
        """Return the policies of every request with a key; its own go over those of all."""
        pinned = self._config.pinned
        return _over(pinned.get("*", []), pinned.get(key, []) if key is not None else [])

    def _named(self, policy: Any) -> str | None:
        """Find the preset that a request's `policy` names; None for a list of policies."""
        if isinstance(policy, list):
            return None
        if not isinstance(policy, str):
            raise invalid("policy should be the name of a preset or a list of policies.", "policy")
        if policy not in self._presets:
            shown = ", ".join(self._presets) or "none"
            message = f"There is no preset '{policy[:80]}'; there are: {shown}."
            raise APIError(404, message, param="policy", code="preset_not_found")
        return policy

    def _largest(self, names: Collection[str]) -> str:
        return max(names, key=lambda name: self._engines[name].parameters)


def _over(items: Sequence[dict[str, Any]], pinned: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put policies over others of the same names."""
    names = {each["name"] for each in pinned}
    return [*(each for each in items if each["name"] not in names), *pinned]


def model_names(config: Config) -> list[str]:
    """List the valid values of a request's `model`: every engine, and every preset as `waver/<preset>`, the default one
    first, as clients take the first that they find."""
    presets = sorted(config.presets, key=lambda name: name != config.default_preset)
    return [*config.engines, *(PREFIX + name for name in presets)]
