"""Topologies of calls: how several calls of models work on one question (Entropy Judger, arXiv 2602.04234).

| topology | calls in a round | flow | final answer |
| --- | --- | --- | --- |
| single | solver | later rounds see what came before, and refine it | the last call |
| sequential | planner, solver, critic, judger | one after the other; the next round's planner sees all | judger |
| centralized | math, science, code, orchestrator | three at a time, then the orchestrator | orchestrator |
| debate | math, science, code | from the second round on each sees the last three texts | plurality of the last round |
| hybrid | math, science, code, orchestrator | one after the other, each sees the round so far | orchestrator |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Topology = Literal["single", "sequential", "centralized", "debate", "hybrid"]
WORKERS = ("math", "science", "code")
ROLES: dict[str, tuple[str, ...]] = {
    "single": ("solver",),
    "sequential": ("planner", "solver", "critic", "judger"),
    "centralized": (*WORKERS, "orchestrator"),
    "debate": WORKERS,
    "hybrid": (*WORKERS, "orchestrator"),
}
"""Roles of each topology, in the order in which they speak in a round."""
WINDOW = 3
"""Texts that a debater sees."""
INSTRUCTIONS = {
    "solver": "Solve the task. Think step by step, and end with the final answer.",
    "planner": "Write a short plan for solving the task. Do not solve it.",
    "critic": "Check the solution so far for mistakes, and name what to correct. Be brief.",
    "judger": "Weigh everything said so far, and give the complete final answer to the task.",
    "math": "You are an expert in mathematics. Solve the task, and end with the final answer.",
    "science": "You are an expert in science. Solve the task, and end with the final answer.",
    "code": "You are an expert in programming. Solve the task, and end with the final answer.",
    "orchestrator": "Weigh what the experts said, and give the complete final answer to the task.",
}


@dataclass(frozen=True)
class Said:
    """Text of a role in a round."""

    role: str
    round: int
    text: str


def turns(topology: Topology, round: int) -> list[tuple[str, ...]]:
    """List the roles of a round in the order in which they speak; those of one tuple speak at the same time."""
    roles = ROLES[topology]
    if topology in ("centralized", "debate"):
        return [WORKERS, *((role,) for role in roles if role not in WORKERS)]
    return [(role,) for role in roles]


def seen(topology: Topology, role: str, round: int, said: Sequence[Said]) -> list[Said]:
    """Choose what a role sees of what was said so far."""
    now = [each for each in said if each.round == round]
    before = [each for each in said if each.round < round]
    if topology == "debate":
        return before[-WINDOW:] if len(before) >= WINDOW else []
    if topology in ("centralized", "hybrid"):
        feedback = [each for each in before if each.role == "orchestrator"][-1:]
        return feedback if topology == "centralized" and role in WORKERS else [*feedback, *now]
    return list(said)


def conversation(
    messages: Sequence[dict[str, object]], role: str, shown: Sequence[Said], alone: bool
) -> list[dict[str, object]]:
    """Make the conversation that a role answers: the client's, with its instruction and what it sees behind the task.

    Args:
        alone: a single solver that has nothing to look at; the client's conversation is left as it is.
    """
    if alone:
        return list(messages)
    notes = "".join(f"\n\n[{each.role}, round {each.round}]\n{each.text.strip()}" for each in shown)
    words = f"\n\n{INSTRUCTIONS[role]}" if not notes else f"\n\nSaid so far:{notes}\n\n{INSTRUCTIONS[role]}"
    last = max((i for i, each in enumerate(messages) if each.get("role") == "user"), default=len(messages) - 1)
    out = [dict(each) for each in messages]
    content = out[last].get("content")
    text = words if isinstance(content, list) else f"{content or ''}{words}"
    out[last]["content"] = [*content, {"type": "text", "text": words}] if isinstance(content, list) else text
    return out
