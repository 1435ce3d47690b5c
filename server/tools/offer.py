"""Decide what a request's tools, its choice among them and `parallel_tool_calls` mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from waver.engines.schema import CROWDED, MOST_CHARACTERS, crowded, flaw
from waver.server.errors import invalid
from waver.server.tools.forced_schema import calls_schema
from waver.server.tools.schemas import AllowedChoice, NamedFunction, Tool, ToolFields


@dataclass(frozen=True)
class Offer:
    """The tools that a model is offered, and whether it has to call one. `single`: one call at most."""

    tools: tuple[Tool, ...]
    forced: bool = False
    single: bool = False

    @property
    def for_template(self) -> list[dict[str, Any]]:
        return [tool.for_template() for tool in self.tools]

    def schema(self) -> str:
        """Return the JSON schema that a forced call follows.

        Raises:
            APIError: 400, a schema is larger than it may be.
        """
        made = calls_schema(self.tools, self.single)
        text = json.dumps(made)
        if (found := flaw(made)) or len(text) > MOST_CHARACTERS:
            found = found or f" has more than {MOST_CHARACTERS} characters"
            raise invalid(f"The schema of the tools' parameters{found}.", "tools")
        return text


def offer(body: ToolFields) -> Offer | None:
    """Return what a request offers; None where there is nothing to call.

    Raises:
        APIError: 400, two tools have one name, or the choice is none of them.
    """
    if crowded([tool.function.parameters for tool in body.tools]):
        raise invalid(f"The schema of the tools' parameters{CROWDED} together.", "tools")
    names = [tool.function.name for tool in body.tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise invalid(f"There are two tools called '{name[:80]}'.", f"tools[{i}].function.name")
    choice, single = body.tool_choice or "auto", not body.parallel_tool_calls
    if choice == "none":
        return None
    if not body.tools:
        if choice == "auto":
            return None
        raise invalid("tool_choice needs tools to choose from: send 'tools', or leave it out.", "tool_choice")
    match choice:
        case NamedFunction():
            return Offer(_chosen(body, [choice]), forced=True, single=True)
        case AllowedChoice():
            allowed = choice.allowed_tools
            return Offer(_chosen(body, allowed.tools), forced=allowed.mode == "required", single=single)
        case _:
            return Offer(tuple(body.tools), forced=choice == "required", single=single)


def _chosen(body: ToolFields, wanted: list[NamedFunction]) -> tuple[Tool, ...]:
    known = {tool.function.name: tool for tool in body.tools}
    names = [each.function.name for each in wanted]
    for name in names:
        if name not in known:
            shown = ", ".join(list(known)[:20])[:300]
            raise invalid(f"tool_choice names '{name[:80]}', which is none of the tools: {shown}.", "tool_choice")
    return tuple(known[name] for name in dict.fromkeys(names))
