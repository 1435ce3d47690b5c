"""The fields of a request that are about tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from waver.engines.schema import CROWDED, crowded
from waver.server.schemas import Body, Many, Text

MOST_TOOLS = 512
DEEPEST = 64


def _of_bounded_depth(schema: dict[str, Any]) -> dict[str, Any]:
    if crowded(schema):
        raise ValueError(f"the schema{CROWDED}.")
    if deeper(schema, DEEPEST):
        raise ValueError(f"the schema is nested more than {DEEPEST} levels deep.")
    return schema


def deeper(value: Any, most: int) -> bool:
    """Return whether a JSON value is nested more than so many levels deep."""
    level = [value]
    for _ in range(most + 1):
        level = [
            each
            for one in level
            if isinstance(one, dict | list)
            for each in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


class FunctionTool(Body):
    """A function that the model may call. `parameters` is the JSON schema of its arguments, an object."""

    name: Text = Field(min_length=1, max_length=256)
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_of_bounded_depth)] | None = None
    strict: bool = False


class Tool(Body):
    type: Literal["function"]
    function: FunctionTool

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        return {
            "type": "function",
            "function": self.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True),
        }


class FunctionName(Body):
    name: Text


class NamedFunction(Body):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedFunction] = Field(min_length=1, max_length=MOST_TOOLS)


class AllowedChoice(Body):
    """Only these of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Choice = Literal["none", "auto", "required"] | Annotated[NamedFunction | AllowedChoice, Field(discriminator="type")]


class ToolFields(Body):
    """The fields of a chat request that are about tools."""

    tools: Many[Tool] = Field([], max_length=MOST_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
