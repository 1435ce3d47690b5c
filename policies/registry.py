"""Every policy by name; how a request's list is checked and sorted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from waver.engines import plugins
from waver.engines.plugins import PluginError
from waver.engines.tokens import TokenText, differences
from waver.engines.transforms import transform_classes
from waver.policies.base import STAGES, Policy
from waver.policies.hints import naming_fields, parameters_schema
from waver.policies.job import Job
from waver.policies.retrieve.gate_registry import gates
from waver.policies.sample.shaping import as_policy

ALONE = {
    "ask": "{} and {} both hold the conversation; use one of them",
    "select": "{} and {} both choose among answers; use one of them",
    "decode": "{} and {} both choose the engine that writes; use one of them",
    "sample": "{} and {} both choose the tokens that may be drawn; use one, or the request's own top_p and min_p",
}
"""Stages at which one policy is enough, and what is said to two."""
REPORT_KEYS = frozenset(
    "cost policy tokens switches relative_cost entropy trace discarded_tokens catch_up_tokens".split()
)
"""Keys of every report."""
MOST = 16
"""Policies in one request."""


class Writer(Protocol):
    """An engine, as far as a list of policies is checked against it."""

    @property
    def tokens(self) -> TokenText | None:
        """The tokenizer; None where the engine is not loaded and its tokenizer cannot be read."""

    @property
    def parameters(self) -> int:
        """The parameter count, for cost."""


class PolicyError(ValueError):
    """A policy list cannot be used. The message is for the user; `param` names the place, as `policy[0].threshold`."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def policies() -> dict[str, type[Policy]]:
    """Find every policy by name, in the order of their stages: those of the files in this package and of plug-in
    modules, and one for each transform.

    Raises:
        PluginError: one of them is not defined as it should be.
    """
    return _found(plugins.loaded())


@cache
def _found(modules: tuple[str, ...]) -> dict[str, type[Policy]]:
    classes = plugins.subclasses(Policy, "waver.policies", modules)
    found: dict[str, type[Policy]] = {}
    for each in (*classes, *map(as_policy, transform_classes().values())):
        name = plugins.name_of(each, found)
        if getattr(each, "stage", None) not in STAGES:
            raise PluginError(f"the policy {name!r} in {each.__module__} needs a stage, one of {', '.join(STAGES)}")
        if each.decode is Policy.decode:
            raise PluginError(f"the policy {name!r} in {each.__module__} has no method 'decode'")
        if clash := set(each.report_keys) & REPORT_KEYS:
            raise PluginError(f"the policy {name!r} in {each.__module__} cannot have the report key {min(clash)!r}")
        found[name] = each
    gates()
    return dict(sorted(found.items(), key=lambda item: (STAGES.index(item[1].stage), item[0])))


def parse(
    items: Sequence[Any],
    engines: Mapping[str, Writer],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    probes: Collection[str] = (),
) -> tuple[Policy, ...]:
    """Check a request's list of policies and sort it by stage.

    Args:
        items: objects such as `{"name": "ead", "threshold": 0.7}`. engines: all configured engines by name; where a
            tokenizer is not known yet, it is not compared.
        defaults: parameters for policies that leave them out, by policy name. probes: names of all configured probes.

    Raises:
        PolicyError: unknown name or field, wrong type or range, unknown engine or probe, or policies that cannot stand
            together.
    """
    if len(items) > MOST:
        raise PolicyError(f"at most {MOST} policies in one request, not {len(items)}", "policy")
    chosen = [_one(item, f"policy[{i}]", engines, defaults or {}, probes) for i, item in enumerate(items)]
    for i, policy in enumerate(chosen):
        for other in chosen[:i]:
            if other.name == policy.name:
                raise PolicyError(f"{policy.name} is listed twice", f"policy[{i}]")
            together = policy.combines or other.combines
            if other.stage == policy.stage and policy.stage in ALONE and not together:
                raise PolicyError(ALONE[policy.stage].format(policy.name, other.name), f"policy[{i}]")
    return tuple(sorted(chosen, key=lambda policy: STAGES.index(policy.stage)))


def _one(
    item: Any,
    param: str,
    engines: Mapping[str, Writer],
    defaults: Mapping[str, Mapping[str, Any]],
    probes: Collection[str],
) -> Policy:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise PolicyError('a policy is an object with a name, such as {"name": "ead"}', param)
    name, known = item["name"], policies()
    if name not in known:
        raise PolicyError(f"unknown policy {name[:64]!r}; there are {', '.join(known)}", f"{param}.name")
    kind = known[name]
    try:
        policy = kind.model_validate(_over(defaults.get(name, {}), item, kind))
    except ValidationError as error:
        raise _readable(error, kind, param) from None
    for field in policy.probe_fields:
        if (probe := getattr(policy, field)) is not None and probe not in probes:
            raise PolicyError(
                f"unknown probe {probe[:64]!r}; there are {', '.join(probes) or 'none'}", f"{param}.{field}"
            )
    for field in policy.engine_fields:
        if (engine := getattr(policy, field)) not in engines:
            raise PolicyError(f"unknown engine {engine[:64]!r}; there are {', '.join(engines)}", f"{param}.{field}")
    for engine in policy.helping_engines:
        if engine not in engines:
            raise PolicyError(f"unknown engine {engine[:64]!r}; there are {', '.join(engines)}", param)
    names = [getattr(policy, field) for field in policy.engine_fields]
    for other in names[1:]:
        one, another = engines[names[0]].tokens, engines[other].tokens
        if one is not None and another is not None and (reason := differences(one, another)):
            raise PolicyError(
                f"{names[0]} and {other} cannot share an answer: {reason}", f"{param}.{policy.engine_fields[1]}"
            )
    return policy


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any], policy: type[Policy]) -> dict[str, Any]:
    """Put what is given over the defaults; a field that is an object itself, part by part."""
    out = {**defaults, **given}
    for name, field in policy.model_fields.items():
        below, above = defaults.get(name), given.get(name)
        if isinstance(field.default, BaseModel) and isinstance(below, Mapping) and isinstance(above, Mapping):
            out[name] = {**below, **above}
    return out


def _readable(error: ValidationError, policy: type[Policy], param: str) -> PolicyError:
    """Turn pydantic's first complaint into a sentence with the field's description and what is allowed."""
    first = error.errors(include_url=False)[0]
    path = [str(part)[:64] for part in first["loc"] if part != "[key]"]
    where, schema = ".".join([param, *path]), policy.model_json_schema()
    if not path:
        return PolicyError(str(first["msg"]).removeprefix("Value error, "), param)
    if first["type"] == "extra_forbidden":
        known = ", ".join(n for n in _part(schema, path[:-1]).get("properties", {}) if n != "name")
        return PolicyError(f"{path[-1]!r} is not a parameter; there are {known}", where)
    return PolicyError(f"{first['msg']}{_allowed(_part(schema, path))}", where)


def _part(schema: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Look up the schema of a field, or of a field of one."""
    here = schema
    for name in path:
        if name not in here.get("properties", {}):
            break
        here = here["properties"][name]
        here = schema["$defs"][here["$ref"].rsplit("/", 1)[1]] if "$ref" in here else here
    return here


def _allowed(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    schema = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
    limits = [f"{words[key]} {schema[key]}" for key in words if key in schema]
    if "enum" in schema:
        limits.append("one of " + ", ".join(map(str, schema["enum"])))
    kind = schema.get("type", "value")
    article = "an" if kind[0] in "aeiou" else "a"
    return f" ({article} {kind}{' ' if limits else ''}{', '.join(limits)})"


def check_engines(policies: Sequence[Policy], job: Job) -> None:
    """Ask every engine that may come to write whether it can do its part (blocking).

    Raises:
        Unsupported, EngineError: one of them cannot.
    """
    jobs = [job]
    for policy in policies:
        jobs = [inner for outer in jobs for inner in policy.possible_jobs(outer)]
    for each in jobs:
        start = each.sampling.answer_start
        begun = start is not None and start < len(each.prompt_ids)
        each.writer.check(each.sampling, begun)


def engines_used(policies: Sequence[Policy], default_engine: str) -> tuple[str, ...]:
    """Name the engines that may write, in the policies' order; the default one where no policy chooses."""
    chosen = [getattr(policy, field) for policy in policies for field in policy.engine_fields]
    helping = [name for policy in policies for name in policy.helping_engines]
    return tuple(dict.fromkeys([*(chosen or [default_engine]), *helping]))


def describe(defaults: Mapping[str, Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Describe every policy for `GET /v1/policies`: name, stage, summary, paper, which parameters name engines, what it
    adds to a report, what fields name, what is for evaluation, whether another policy of its stage may stand beside it,
    JSON Schema of its parameters, the defaults with what the configuration sets (`defaults`, by policy name) over them,
    and what the defaults were made for."""
    set_here = defaults or {}
    own = {
        name: policy.model_validate({"name": name, **set_here.get(name, {})}).model_dump(mode="json", exclude={"name"})
        for name, policy in policies().items()
    }
    return [
        {
            "name": name,
            "stage": policy.stage,
            "summary": plugins.summary(policy),
            "paper": policy.paper,
            "engine_fields": list(policy.engine_fields),
            "report_keys": dict(policy.report_keys),
            "names": naming_fields(policy),
            "evaluation": {field: list(values) for field, values in policy.evaluation.items()},
            "alone": policy.stage in ALONE and not policy.combines,
            "schema": parameters_schema(policy),
            "defaults": own[name],
            "defaults_for": policy.defaults_for,
        }
        for name, policy in policies().items()
    ]
