"""Make the JSON Schema of a configuration, with the parameters of every policy, for editors."""

from __future__ import annotations

from typing import Any

from waver.policies.registry import policies
from waver.server.config import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BACKENDS = ("VllmConfig", "LoraConfig", "UpstreamConfig")
"""Classes of engines that a configuration tells by `backend`, which it may leave out for transformers alone."""


def config_schema() -> dict[str, Any]:
    """Return the schema: what pydantic knows of the configuration, and each policy where a list of them stands."""
    schema = Config.model_json_schema()
    for name in BACKENDS:
        schema["$defs"][name]["required"] = ["backend", *schema["$defs"][name]["required"]]
    names = {name: f"policy_{name}" for name in policies()}
    for name, policy in policies().items():
        own = policy.model_json_schema(ref_template=f"#/$defs/{names[name]}_{{model}}")
        for inner, definition in own.pop("$defs", {}).items():
            schema["$defs"][f"{names[name]}_{inner}"] = definition
        schema["$defs"][names[name]] = {**own, "required": ["name"]}
    anyone = {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/{each}"} for each in names.values()]}}
    for section in ("presets", "pinned"):
        lists = schema["properties"][section]
        if "patternProperties" in lists:
            lists["patternProperties"] = dict.fromkeys(lists["patternProperties"], anyone)
        else:
            lists["additionalProperties"] = anyone
    for section in schema["properties"].values():
        if "patternProperties" in section:
            section["additionalProperties"] = False
    described = schema["properties"]["policies"]
    described["properties"] = {name: _defaults(schema["$defs"][each]) for name, each in names.items()}
    described["additionalProperties"] = False
    return {"$schema": DIALECT, "title": "Waver's configuration", **_untitled(schema)}


def _untitled(node: Any) -> Any:
    """Leave out the titles that pydantic makes of names."""
    if isinstance(node, list):
        return [_untitled(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {key: _untitled(each) for key, each in node.items() if not (key == "title" and isinstance(each, str))}


def _defaults(policy: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a policy's defaults: its parameters without its name."""
    properties = {name: each for name, each in policy["properties"].items() if name != "name"}
    return {"type": "object", "properties": properties, "additionalProperties": False}
