"""Find the cheapest setting of a policy that loses at most so much against one engine alone, or the best one within a
budget: `waver calibrate policy`.

The questions are split. A quarter, the design draw, compares all settings. Those that no other beats in both cost and
right answers are tested on the other questions, the dearest first (`waver.risk`); what is promised holds for questions
to come, and what is reported of a setting was measured on questions that did not choose it. The folder gets
`answers.jsonl`, from which a stopped run goes on, and `report.json`.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from waver import job
from waver.clients.client import AsyncWaver, has_report, report
from waver.clients.endings import status_of
from waver.clients.options import Tuning
from waver.clients.outcome import snippet
from waver.clients.questions import Question, Refused, digest, right
from waver.clients.resume import begin
from waver.progress import counted
from waver.risk import needed, p_value
from waver.stats import wilson

ANSWERS = "answers.jsonl"
REFERENCE = -1
"""The number of the reference among the settings."""
MOST = 64
VARIED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "ead": {"threshold": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "window": (1, 5), "monitor": ("small",)},
    "route": {"threshold": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "draft_tokens": (16,)},
    "diffadapt": {"strategy": ("auto", "easy", "normal", "hard")},
}
"""Values that are tried of a policy unless --vary says otherwise."""


def settings_of(name: str, fixed: Mapping[str, Any], vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """List the settings to try: every combination of the varied parameters.

    Raises:
        Refused: there is nothing to vary, or too much.
    """
    varied = {key: values for key, values in (vary or VARIED.get(name, {})).items() if key not in fixed}
    if not varied:
        raise Refused(f"Say which parameters of {name} to vary: --vary threshold=0.1,0.3,1")
    made = [
        {"name": name, **fixed, **dict(zip(varied, values, strict=True))} for values in product(*varied.values())
    ]  # fmt: skip
    if len(made) > MOST:
        raise Refused(f"{len(made)} settings are too many: vary fewer parameters, at most {MOST} combinations.")
    return made


def check(questions: Sequence[Question], wanted: Tuning, file: Path) -> None:
    """Raises:
    Refused: these questions cannot calibrate like this."""
    if (wanted.loss is None) == (wanted.budget is None):
        raise Refused("Give --loss, what may be lost against --against, or --budget, what may be spent: one of them.")
    if unknown := [question.line for question in questions if not question.answers]:
        raise Refused(f"{file}, line {unknown[0]} has no answer: what is lost cannot be told without.")
    if len(questions) < 8:
        raise Refused(f"{file} holds {len(questions)} questions: bring eight at the least, better some hundred.")


@dataclass(frozen=True)
class Asking:
    """A server, and what all requests share; answers are kept in `out`."""

    client: AsyncWaver
    settings: Sequence[Mapping[str, Any]]
    wanted: Tuning
    out: Path
    known: dict[tuple[int, int], dict[str, Any]]
    """Answers, by setting and line."""

    async def all(self, setting: int, questions: Sequence[Question], done: Callable[[], None]) -> list[dict[str, Any]]:
        """Return what a setting made of questions, in their order; asks for what is not known.

        Raises:
            openai.OpenAIError: the server refuses. Refused: it does not tell costs.
        """
        free = asyncio.Semaphore(self.wanted.at_once)

        async def one(question: Question) -> None:
            if (setting, question.line) not in self.known:
                async with free:
                    line = await self._ask(setting, question)
                job.append_line(self.out / ANSWERS, line)
                self.known[setting, question.line] = line
            done()

        await asyncio.gather(*map(one, questions))
        return [self.known[setting, question.line] for question in questions]

    async def _ask(self, setting: int, question: Question) -> dict[str, Any]:
        policy = [] if setting == REFERENCE else [dict(self.settings[setting])]
        began = asyncio.get_running_loop().time()
        response = await self.client.chat.completions.create(
            model=self.wanted.against if setting == REFERENCE else self.wanted.model or self.wanted.against,
            messages=[{"role": "user", "content": question.text}],
            temperature=self.wanted.temperature,
            seed=question.line,
            max_tokens=self.wanted.max_tokens,
            extra_body={"policy": policy},
        )
        seconds = asyncio.get_running_loop().time() - began
        cost = report(response).cost if has_report(response) else None
        if cost is None:
            raise Refused("The server's answers do not tell what they cost: is it a Waver of this release?")
        text = response.choices[0].message.content or ""
        good = right(text, question, self.wanted.scorer)
        spent = sum(each.parameters * (each.decoded + each.read) for each in cost.engines.values())
        return {
            "setting": setting, "line": question.line, "right": good, "spent": spent, "seconds": seconds, "text": text,
        }  # fmt: skip


def split(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Split questions into the draw that chooses, a quarter, and the draw that tests."""
    order = list(questions)
    random.Random("candidates").shuffle(order)
    count = max(len(order) // 4, 2)
    return order[:count], order[count:]


def summary(lines: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up a setting's answers beside those of the reference to the same questions: shares of right answers, and
    cost and seconds as ratios of sums."""
    good = sum(line["right"] for line in lines)
    return {
        "questions": len(lines),
        "right": good / len(lines),
        "interval": list(wilson(good, len(lines))),
        "lost": fmean(float(b["right"]) - float(a["right"]) for a, b in zip(lines, reference, strict=True)),
        "cost": sum(line["spent"] for line in lines) / sum(line["spent"] for line in reference),
        "seconds": sum(line["seconds"] for line in lines) / sum(line["seconds"] for line in reference),
    }


def front(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """List the settings that are cheaper than the reference and that no other beats in both cost and right answers, the
    dearest first."""
    beaten = {
        i
        for i, row in enumerate(rows)
        for other in rows
        if other["cost"] <= row["cost"] and other["right"] >= row["right"]
        and (other["cost"], -other["right"]) != (row["cost"], -row["right"])
    }  # fmt: skip
    kept = [i for i, row in enumerate(rows) if i not in beaten and row["cost"] < 1]
    return sorted(kept, key=lambda i: -rows[i]["cost"])


async def measure(asking: Asking, questions: Sequence[Question], notes: Console) -> dict[str, Any]:
    """Ask what is needed, and return the report.

    Raises:
        openai.OpenAIError: the server refuses. Refused: it does not tell costs.
    """
    wanted, numbers = asking.wanted, range(len(asking.settings))
    chooses, tests = split(questions)
    with counted(notes) as bar:
        shown = bar.add_task("comparing settings", total=len(chooses) * (len(numbers) + 1))
        reference = await asking.all(REFERENCE, chooses, lambda: bar.advance(shown))
        rows = [
            summary(await asking.all(i, chooses, lambda: bar.advance(shown)), reference) for i in numbers
        ]  # fmt: skip
        order = list(_order(rows, wanted))
        shown = bar.add_task("testing", total=len(tests) * (len(order) + 1))
        alone = await asking.all(REFERENCE, tests, lambda: bar.advance(shown))
        tested: list[dict[str, Any]] = []
        for i in order:
            lines = await asking.all(i, tests, lambda: bar.advance(shown))
            found = {"setting": i, **summary(lines, alone)}
            if wanted.loss is not None:
                lost = [float(b["right"]) - float(a["right"]) for a, b in zip(lines, alone, strict=True)]
                found["p"] = p_value(lost, wanted.loss, wanted.confidence)
            tested.append(found)
            if wanted.loss is not None and found["p"] > 1 - wanted.confidence:
                break
    kept = [row for row in tested if wanted.loss is None or row["p"] <= 1 - wanted.confidence]
    return {
        "chosen": kept[-1] if kept else None,
        "preset": dict(asking.settings[kept[-1]["setting"]]) if kept else None,
        "reference": {"model": wanted.against, **summary(alone, alone)},
        "tested": tested,
        "compared": [{"policy": dict(asking.settings[i]), **rows[i]} for i in numbers],
    }


def _order(rows: Sequence[Mapping[str, Any]], wanted: Tuning) -> Iterator[int]:
    """Yield the settings to test: the front for a loss, the one with the most right answers for a budget."""
    if wanted.budget is None:
        yield from front(rows)
        return
    within = [i for i, row in enumerate(rows) if row["cost"] <= wanted.budget]
    if within:
        yield max(within, key=lambda i: (rows[i]["right"], -rows[i]["cost"]))


def page(found: Mapping[str, Any], wanted: Tuning, questions: int) -> str:
    """Write the report for the terminal; the last line goes into a preset."""
    lines = [f"compared on {found['compared'][0]['questions']} questions, cost and seconds against {wanted.against}:"]
    lines += [f"  {snippet(row['policy'])}: {_told(row)}" for row in found["compared"]]
    lines += ["", f"tested on {found['reference']['questions']} others:"]
    lines.append(f"  {wanted.against} alone: {_told(found['reference'])}")
    for row in found["tested"]:
        said = "" if "p" not in row else ", promised" if row["p"] <= 1 - wanted.confidence else ", not promised"
        lines.append(f"  {snippet(found['compared'][row['setting']]['policy'])}: {_told(row)}{said}")
    chosen = found["chosen"]
    if chosen is None and wanted.budget is not None:
        return "\n".join([*lines, "", f"No setting costs at most {wanted.budget:g} of {wanted.against} alone."])
    aim = "" if wanted.loss is None else f"at most {100 * wanted.loss:g} points with {wanted.confidence:.0%} confidence"
    if chosen is None:
        fewest = math.ceil(needed(wanted.loss or 0.0, wanted.confidence) * 4 / 3)
        no = f"No setting loses {aim}, as far as {questions} questions tell; it takes {fewest} at the least."
        return "\n".join([*lines, "", f"{no} Use {wanted.against} alone, bring more questions, or allow more loss."])
    gain = "faster" if chosen["seconds"] < 1 else "slower, whatever it costs"
    load = f"with {wanted.at_once} requests at a time"
    lines += [
        "",
        f"It loses {aim}." if aim else f"It is the best within {wanted.budget:g}, as far as the first draw tells.",
        f"It takes {chosen['seconds']:.2f} of the seconds of {wanted.against} alone, {load}: {gain}.",
        "",
        "For a preset:",
        snippet(found["preset"]),
    ]
    return "\n".join(lines)


def _told(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['right']:.1%} right ({low:.1%} to {high:.1%}), cost {row['cost']:.2f}, seconds {row['seconds']:.2f}"


def calibrate(
    questions: list[Question], settings: Sequence[Mapping[str, Any]], wanted: Tuning, base_url: str, key: str | None,
    out: Path, show: Callable[[str], None],
) -> int:  # fmt: skip
    """Compare and test, and write everything into `out`.

    Returns:
        The exit status: 1 if it cannot be done or nothing can be promised, 130 after ctrl-C.
    """
    notes = Console(stderr=True)
    run = asdict(wanted) | {"settings": [dict(each) for each in settings], "sha256": digest(questions)}

    async def ask() -> dict[str, Any]:
        known = {(line["setting"], line["line"]): line for line in begin(out, run, ANSWERS)}
        async with AsyncWaver(base_url=base_url, api_key=key, max_retries=5) as client:
            return await measure(Asking(client, settings, wanted, out, known), questions, notes)

    def work() -> int:
        found = asyncio.run(ask())
        text = json.dumps(found, indent=1) + "\n"
        job.replace_file(out / "report.json", partial(Path.write_text, data=text, encoding="utf-8"))
        show(page(found, wanted, len(questions)))
        return 0 if found["chosen"] else 1

    return status_of(work, base_url, notes)
