"""Run `waver calibrate arms`: find which model, preset or threshold answers one's questions best, with few requests.

An arm is a model with, it may be, policies. Each request asks one arm a question that it was not asked before, all arms
the same ones in the same order; which arm is next is chosen by a policy that was trained in simulation (arXiv
2010.15382), or by a rule. The folder gets `policy.safetensors`, `answers.jsonl`, from which a stopped run goes on, and
`report.json`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from waver import job
from waver.clients.client import AsyncWaver, has_report, report
from waver.clients.endings import status_of
from waver.clients.options import Choosing
from waver.clients.questions import Question, Refused, digest, right
from waver.clients.resume import begin
from waver.progress import counted
from waver.stats import wilson

if TYPE_CHECKING:
    from waver.training.selection.active.policies import Policy

ANSWERS, POLICY = "answers.jsonl", "policy.safetensors"
LEARNED = "learned"


@dataclass(frozen=True)
class Arm:
    """A model, and the policies that a request brings; none: the model's own."""

    text: str
    model: str
    policy: list[dict[str, Any]] | None = None


def read_arm(text: str) -> Arm:
    """Read `MODEL`, or `MODEL=[{name: ead, threshold: 0.05}]`.

    Raises:
        Refused: it is neither.
    """
    model, sign, given = text.partition("=")
    if not sign:
        return Arm(text, text)
    try:
        policy = yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise Refused(f"--arm {text}: the policies cannot be read: {error}") from None
    policy = [policy] if isinstance(policy, dict) else policy
    if not model or not isinstance(policy, list) or not all(isinstance(each, dict) for each in policy):
        raise Refused(f"--arm {text}: write MODEL, or MODEL=[{{name: ead, threshold: 0.05}}].")
    return Arm(text, model, policy)


def check(questions: Sequence[Question], arms: Sequence[Arm], wanted: Choosing, file: Path) -> None:
    """Refuse what cannot be.

    Raises:
        Refused: the message says why.
    """
    from waver.training.selection.active.policies import RULES

    if len(arms) < 2 or len({arm.text for arm in arms}) < len(arms):
        raise Refused("Give at least two --arm, each once.")
    if wanted.strategy not in (LEARNED, *RULES):
        raise Refused(f"There is no strategy {wanted.strategy!r}; there are {LEARNED}, {', '.join(RULES)}.")
    if unknown := [question.line for question in questions if not question.answers]:
        raise Refused(f"{file}, line {unknown[0]} has no answer: which arm is best cannot be told without.")
    if wanted.budget > len(arms) * len(questions):
        most = len(arms) * len(questions)
        raise Refused(f"{len(questions)} questions to {len(arms)} arms are {most} requests: lower --budget.")


def learn(arms: int, wanted: Choosing, out: Path, notes: Console) -> tuple[Policy, dict[str, float]]:
    """Return the policy that chooses, and the mean regret of each strategy on fresh simulated users.

    `learned` is trained, or read from `out` where a stopped run had trained it.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from waver.training.selection.active.policies import RULES, Learnt, Shared
    from waver.training.selection.active.tasks import draw_arms
    from waver.training.selection.active.train import Settings, expected_losses, train_robust

    torch.manual_seed(wanted.seed)
    task = draw_arms(arms, wanted.budget, wanted.classes, wanted.instances, wanted.seed)
    strategies: dict[str, Policy] = dict(RULES)
    if wanted.strategy == LEARNED:
        made = Learnt(task, Shared())
        if (out / POLICY).exists():
            made.network.load_state_dict(load_file(out / POLICY))
        else:
            settings = Settings(steps=wanted.steps, rollouts=wanted.rollouts, measured=20)
            with counted(notes) as bar:
                shown = bar.add_task("training in simulation", total=(wanted.classes + 1) * wanted.steps)
                made = train_robust(task, made, settings, wanted.seed, lambda: bar.advance(shown)).policy
            job.replace_file(out / POLICY, lambda path: save_file(made.network.state_dict(), path))
        strategies = {LEARNED: made, **strategies}
    fresh = draw_arms(arms, wanted.budget, wanted.classes, wanted.users, wanted.seed + 10_000)
    generator = torch.Generator().manual_seed(wanted.seed)
    regrets = {name: float(expected_losses(fresh, each, 20, generator).mean()) for name, each in strategies.items()}
    return strategies[wanted.strategy], regrets


def next_arm(policy: Policy, lines: Sequence[dict[str, Any]], arms: int, left: Sequence[int], seed: int) -> int:
    """Choose the next arm from what was answered so far; one whose questions are used up is left out.

    The choice is a function of the seed and the number of answers, so that a stopped run goes on as it would have.
    """
    import torch

    seen = torch.zeros(1, arms, 2)
    for line in lines:
        seen[0, line["arm"], 0] += 1
        seen[0, line["arm"], 1] += line["reward"]
    generator = torch.Generator().manual_seed(seed * 100_003 + len(lines))
    with torch.no_grad():
        logits = policy(seen, len(lines), generator)[0]
    logits = logits.masked_fill(torch.tensor([count == 0 for count in left]), float("-inf"))
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


async def ask_all(
    questions: Sequence[Question],
    arms: Sequence[Arm],
    wanted: Choosing,
    policy: Policy,
    lines: list[dict[str, Any]],
    base_url: str,
    key: str | None,
    out: Path,
    notes: Console,
) -> None:
    """Make the requests that are left, one after the other, and add what came of them to `lines`.

    Raises:
        openai.OpenAIError: the server refuses. Refused: it does not tell costs.
    """
    order = list(questions)
    random.Random(f"arms:{wanted.seed}").shuffle(order)
    async with AsyncWaver(base_url=base_url, api_key=key, max_retries=5) as client:
        with counted(notes) as bar:
            task = bar.add_task("asking", total=wanted.budget, completed=len(lines))
            while len(lines) < wanted.budget:
                used = [sum(line["arm"] == i for line in lines) for i in range(len(arms))]
                chosen = next_arm(policy, lines, len(arms), [len(order) - count for count in used], wanted.seed)
                line = {"arm": chosen, **await _ask(client, arms[chosen], order[used[chosen]], wanted)}
                job.append_line(out / ANSWERS, line)
                lines.append(line)
                bar.advance(task)


async def _ask(client: AsyncWaver, arm: Arm, question: Question, wanted: Choosing) -> dict[str, Any]:
    own: dict[str, Any] = {} if arm.policy is None else {"extra_body": {"policy": arm.policy}}
    response = await client.chat.completions.create(
        model=arm.model,
        messages=[{"role": "user", "content": question.text}],
        temperature=0,
        seed=question.line,
        max_tokens=wanted.max_tokens,
        **own,
    )
    if wanted.price and not has_report(response):
        raise Refused("The server's answers do not tell what they cost, which --price needs: is it a Waver?")
    cost = report(response).relative_cost if has_report(response) else None
    good = right(response.choices[0].message.content or "", question, wanted.scorer)
    reward = min(max(float(good) - wanted.price * (cost or 0.0), 0.0), 1.0)
    return {"line": question.line, "right": good, "cost": cost, "reward": reward}


def found_of(arms: Sequence[Arm], lines: Sequence[dict[str, Any]], regrets: dict[str, float]) -> dict[str, Any]:
    """Return the report: each arm's requests, and the one of the highest mean reward (the first of those level)."""
    rows: list[dict[str, Any]] = []
    for i, arm in enumerate(arms):
        own = [line for line in lines if line["arm"] == i]
        good = sum(line["right"] for line in own)
        costs = [line["cost"] for line in own if line["cost"] is not None]
        rows.append(
            {
                "arm": arm.text,
                "requests": len(own),
                "right": good / len(own) if own else None,
                "interval": list(wilson(good, len(own))) if own else None,
                "cost": sum(costs) / len(costs) if costs else None,
                "reward": sum(line["reward"] for line in own) / len(own) if own else None,
            }
        )
    best = max((row for row in rows if row["requests"]), key=lambda row: row["reward"])
    return {"best": best["arm"], "arms": rows, "simulated_regret": regrets}


def page(found: dict[str, Any], strategy: str) -> str:
    """Write the report for the terminal; the last line names the best arm."""
    lines = []
    for row in found["arms"]:
        if not row["requests"]:
            lines.append(f"{row['arm']}: not asked")
            continue
        low, high = row["interval"]
        cost = "" if row["cost"] is None else f", relative cost {row['cost']:.2f}"
        told = f"{row['right']:.1%} right ({low:.1%} to {high:.1%}) of {row['requests']}"
        lines.append(f"{row['arm']}: {told}{cost}, reward {row['reward']:.3f}")
    regrets = ", ".join(f"{name} {value:.4f}" for name, value in found["simulated_regret"].items())
    lines += ["", f"chosen by {strategy}; regret on simulated users: {regrets}", "", f"best: {found['best']}"]
    return "\n".join(lines)


def calibrate(
    questions: list[Question],
    arms: Sequence[Arm],
    wanted: Choosing,
    base_url: str,
    key: str | None,
    out: Path,
    show: Callable[[str], None],
) -> int:
    """Choose and ask until the budget is spent, and write everything into `out`.

    Returns:
        The exit status: 1 if it cannot be done, 130 after ctrl-C.
    """
    notes = Console(stderr=True)
    run = asdict(wanted) | {"arms": [arm.text for arm in arms], "sha256": digest(questions)}

    def work() -> int:
        lines = begin(out, run, ANSWERS)
        policy, regrets = learn(len(arms), wanted, out, notes)
        asyncio.run(ask_all(questions, arms, wanted, policy, lines, base_url, key, out, notes))
        found = found_of(arms, lines, regrets)
        text = json.dumps(found, indent=1) + "\n"
        job.replace_file(out / "report.json", partial(Path.write_text, data=text, encoding="utf-8"))
        show(page(found, wanted.strategy))
        return 0

    return status_of(work, base_url, notes)
