"""Find the cheapest setting of a policy that loses at most so much against one engine alone, or the best one within a
budget or a share of tokens: `waver calibrate policy`.

The questions are split. A quarter, the design draw, compares all settings; where they follow from entropies
(`waver.clients.searching`), one engine answers it first. Those that no other beats in both cost and right answers are
tested on the other questions, the dearest first (`waver.risk`); what is promised holds for questions to come, and what
is reported of a setting was measured on questions that did not choose it. Without answers a setting is as good as its
texts are like those of the engine alone. The folder gets `answers.jsonl`, from which a stopped run goes on,
`report.json`, and the setting as `preset.yaml`.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from difflib import SequenceMatcher
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import openai
from rich.console import Console

from waver import job
from waver.clients.chat import explain
from waver.clients.client import AsyncWaver, has_report, report, trace
from waver.clients.endings import status_of
from waver.clients.options import Tuning
from waver.clients.outcome import least_loss, snippet
from waver.clients.questions import Question, Refused, digest, right
from waver.clients.resume import begin
from waver.clients.searching import MOST, TRACED, settings_from
from waver.progress import counted
from waver.risk import needed, p_value
from waver.stats import wilson

ANSWERS = "answers.jsonl"
REFERENCE, TRACE = -1, -2
"""Numbers, among the settings, of the engine alone, and of the answers whose entropies are looked at."""


@dataclass(frozen=True)
class Search:
    """The policy to calibrate: parameters that stay, and values of those that are varied; none of these: the settings
    follow from the entropies of the user's prompts."""

    name: str
    fixed: Mapping[str, Any]
    vary: Mapping[str, Sequence[Any]]

    @property
    def traced(self) -> bool:
        return self.name in TRACED and not self.vary

    def settings(self, traces: Sequence[Sequence[float]] = (), share: float | None = None) -> list[dict[str, Any]]:
        """List the settings to try.

        Raises:
            Refused: there is nothing to vary, or too much.
        """
        varied = {key: values for key, values in self.vary.items() if key not in self.fixed}
        if not varied:
            return settings_from(self.name, self.fixed, traces, share)
        made = [
            {"name": self.name, **self.fixed, **dict(zip(varied, values, strict=True))}
            for values in product(*varied.values())
        ]
        if len(made) > MOST:
            raise Refused(f"{len(made)} settings are too many: vary fewer parameters, at most {MOST} combinations.")
        return made


def check(questions: Sequence[Question], wanted: Tuning, search: Search, file: Path) -> None:
    """Raises:
    Refused: these questions cannot calibrate like this."""
    if sum(goal is not None for goal in (wanted.loss, wanted.budget, wanted.share)) != 1:
        raise Refused(
            "Give --loss, what may be lost against --against, --budget, what may be spent, or --share, what --against "
            "may write: one of them."
        )
    unknown = [question.line for question in questions if not question.answers]
    if unknown and wanted.loss is not None:
        raise Refused(
            f"{file}, line {unknown[0]} has no answer: what is lost cannot be told without. --budget and --share need "
            "none."
        )
    if search.name == "adaptive_temperature" and wanted.temperature == 0:
        raise Refused("adaptive_temperature changes nothing at temperature 0: give --temperature, as your users do.")
    if len(questions) < 8:
        raise Refused(f"{file} holds {len(questions)} questions: bring eight at the least, better some hundred.")
    if wanted.loss is not None and search.name != "adaptive_temperature" and len(questions) < (fewest := least(wanted)):
        raise Refused(
            f"{file} holds {len(questions)} questions, and it takes {fewest} to promise a loss of at most "
            f"{100 * wanted.loss:g} points with {wanted.confidence:.0%} confidence. Bring more, allow "
            f"--loss {least_loss(len(questions), wanted.confidence):g}, or take --share 0.3 or --budget 0.5, which "
            "choose a setting and promise nothing."
        )
    if not search.traced:
        search.settings()


def least(wanted: Tuning) -> int:
    """Count the questions that a promise takes at the least, with the quarter that compares settings."""
    return math.ceil(needed(wanted.loss or 0.0, wanted.confidence) * 4 / 3)


@dataclass(frozen=True)
class Asking:
    """A server, and what all requests share; answers are kept in `out`."""

    client: AsyncWaver
    settings: Sequence[Mapping[str, Any]]
    wanted: Tuning
    out: Path
    known: dict[tuple[int, int], dict[str, Any]]
    """Answers, by setting and line."""
    watched: str = "small"
    """The engine whose entropies are looked at."""

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

        await one(questions[0])  # what the server refuses of a setting it refuses here
        await asyncio.gather(*map(one, questions[1:]))
        return [self.known[setting, question.line] for question in questions]

    async def _ask(self, setting: int, question: Question) -> dict[str, Any]:
        wanted = self.wanted
        policy = [] if setting < 0 else [dict(self.settings[setting])]
        models = {REFERENCE: wanted.against, TRACE: self.watched}
        began = asyncio.get_running_loop().time()
        response = await self.client.chat.completions.create(
            model=models.get(setting, wanted.model or wanted.against),
            messages=[{"role": "user", "content": question.text}],
            temperature=1.0 if setting == TRACE and wanted.temperature else wanted.temperature,
            seed=question.line,
            max_tokens=wanted.max_tokens,
            extra_body={"policy": policy, "trace": setting == TRACE},
        )
        seconds = asyncio.get_running_loop().time() - began
        done = report(response) if has_report(response) else None
        cost = None if done is None else done.cost
        if done is None or cost is None:
            raise Refused("The server's answers do not tell what they cost: is it a Waver of this release?")
        text = response.choices[0].message.content or ""
        line = {"setting": setting, "line": question.line}
        if setting == TRACE:
            told = done.trace or trace(response.choices[0])
            return line | {"entropies": [round(token.entropy, 6) for token in told]}
        return line | {
            "right": right(text, question, wanted.scorer) if question.answers else None,
            "spent": sum(cost.spent),
            "tokens": sum(done.tokens.values()),
            "large": done.tokens.get(wanted.against, 0),
            "seconds": seconds,
            "text": text,
        }


def split(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Split questions into the draw that chooses, a quarter, and the draw that tests."""
    order = list(questions)
    random.Random("candidates").shuffle(order)
    count = max(len(order) // 4, 2)
    return order[:count], order[count:]


def summary(lines: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up a setting's answers beside those of the reference to the same questions: cost and seconds as ratios of
    sums, the share of tokens that the reference's engine wrote, shares of right answers where all are known, and else
    how like its texts are."""
    out: dict[str, Any] = {
        "questions": len(lines),
        "cost": sum(line["spent"] for line in lines) / sum(line["spent"] for line in reference),
        "seconds": sum(line["seconds"] for line in lines) / sum(line["seconds"] for line in reference),
        "share": sum(line["large"] for line in lines) / max(sum(line["tokens"] for line in lines), 1),
    }
    pairs = list(zip(lines, reference, strict=True))
    if any(line["right"] is None for line in lines):
        return out | {"alike": fmean(alike(a["text"], b["text"]) for a, b in pairs)}
    good = sum(line["right"] for line in lines)
    lost = fmean(float(b["right"]) - float(a["right"]) for a, b in pairs)
    return out | {"right": good / len(lines), "interval": list(wilson(good, len(lines))), "lost": lost}


def alike(text: str, other: str) -> float:
    """Return the share of two texts' words that stand in both in the same order, from 0 to 1."""
    return SequenceMatcher(None, text.split(), other.split(), autojunk=False).ratio()


def good(row: Mapping[str, Any]) -> float:
    """Return how good a setting is: its share of right answers, or how like the reference it answers."""
    return float(row["right"] if "right" in row else row["alike"])


def front(rows: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """List the settings that are cheaper than the reference and that no other beats in both cost and right answers, the
    dearest first."""
    beaten = {
        i
        for i, row in rows.items()
        for other in rows.values()
        if other["cost"] <= row["cost"] and other["right"] >= row["right"]
        and (other["cost"], -other["right"]) != (row["cost"], -row["right"])
    }  # fmt: skip
    kept = [i for i, row in rows.items() if i not in beaten and row["cost"] < 1]
    return sorted(kept, key=lambda i: -rows[i]["cost"])


async def measure(asking: Asking, search: Search, questions: Sequence[Question], notes: Console) -> dict[str, Any]:
    """Ask what is needed, and return the report.

    Raises:
        openai.OpenAIError: the server refuses. Refused: it does not tell costs.
    """
    wanted = asking.wanted
    chooses, tests = split(questions)
    with counted(notes) as bar:
        traces: list[list[float]] = []
        if search.traced:
            shown = bar.add_task("entropies", total=len(chooses))
            traced = await asking.all(TRACE, chooses, lambda: bar.advance(shown))
            traces = [line["entropies"] for line in traced]
        asking = replace(asking, settings=search.settings(traces, wanted.share))
        shown = bar.add_task("comparing settings", total=len(chooses) * (len(asking.settings) + 1))
        reference = await asking.all(REFERENCE, chooses, lambda: bar.advance(shown))
        rows: dict[int, dict[str, Any]] = {}
        refused: dict[int, openai.BadRequestError] = {}
        for i, policy in enumerate(asking.settings):
            try:
                rows[i] = summary(await asking.all(i, chooses, lambda: bar.advance(shown)), reference)
            except openai.BadRequestError as error:
                refused[i] = error
                notes.print(f"left out {snippet(dict(policy))}: {explain(error, '')}", markup=False, highlight=False)
        if not rows:
            raise refused[0]
        order = list(_order(rows, wanted, search))
        shown = bar.add_task("testing", total=len(tests) * (len(order) + 1))
        alone = await asking.all(REFERENCE, tests, lambda: bar.advance(shown))
        tested: list[dict[str, Any]] = []
        for i in order:
            lines = await asking.all(i, tests, lambda: bar.advance(shown))
            found = {"setting": i, "policy": dict(asking.settings[i]), **summary(lines, alone)}
            if wanted.loss is not None:
                lost = [float(b["right"]) - float(a["right"]) for a, b in zip(lines, alone, strict=True)]
                found["p"] = p_value(lost, wanted.loss, wanted.confidence)
            tested.append(found)
            if wanted.loss is not None and found["p"] > 1 - wanted.confidence:
                break
    kept = [row for row in tested if wanted.loss is None or row["p"] <= 1 - wanted.confidence]
    return {
        "chosen": kept[-1] if kept else None,
        "preset": kept[-1]["policy"] if kept else None,
        "reference": {"model": wanted.against, **summary(alone, alone)},
        "tested": tested,
        "compared": [{"setting": i, "policy": dict(asking.settings[i]), **row} for i, row in rows.items()],
    }


def _order(rows: Mapping[int, Mapping[str, Any]], wanted: Tuning, search: Search) -> Iterator[int]:
    """Yield the settings to test: the front for a loss; for a budget, a share, and a policy that saves nothing, the
    best one within it."""
    if wanted.loss is not None and search.name != "adaptive_temperature":
        yield from front(rows)
        return
    within = [
        i
        for i, row in rows.items()
        if (wanted.budget is None or row["cost"] <= wanted.budget)
        and (wanted.share is None or row["share"] <= wanted.share)
    ]
    if within:
        yield max(within, key=lambda i: (good(rows[i]), -rows[i]["cost"]))


def page(found: Mapping[str, Any], wanted: Tuning, questions: int) -> str:
    """Write the report for the terminal; its last lines go into a configuration."""
    lines = [f"compared on {found['compared'][0]['questions']} questions, cost and seconds against {wanted.against}:"]
    lines += [f"  {snippet(row['policy'])}: {_told(row)}" for row in found["compared"]]
    lines += ["", f"tested on {found['reference']['questions']} others:"]
    lines.append(f"  {wanted.against} alone: {_told(found['reference'])}")
    for row in found["tested"]:
        said = "" if "p" not in row else ", promised" if row["p"] <= 1 - wanted.confidence else ", not promised"
        lines.append(f"  {snippet(row['policy'])}: {_told(row)}{said}")
    chosen = found["chosen"]
    if chosen is None and wanted.budget is not None:
        return "\n".join([*lines, "", f"No setting costs at most {wanted.budget:g} of {wanted.against} alone."])
    if chosen is None and wanted.share is not None:
        return "\n".join([*lines, "", f"No setting leaves at most {wanted.share:.0%} of tokens to {wanted.against}."])
    aim = "" if wanted.loss is None else f"at most {100 * wanted.loss:g} points with {wanted.confidence:.0%} confidence"
    if chosen is None:
        no = f"No setting loses {aim}, as far as {questions} questions tell; it takes {least(wanted)} at the least."
        help = f"Use {wanted.against} alone, bring more questions, or allow more loss; --share 0.3 chooses a setting"
        return "\n".join([*lines, "", f"{no} {help} and promises nothing."])
    gain = "faster" if chosen["seconds"] < 1 else "slower, whatever it costs"
    load = f"with {wanted.at_once} requests at a time"
    limit = f"{wanted.budget:g}" if wanted.budget is not None else f"a share of {wanted.share or 0.0:g}"
    lines += [
        "",
        f"It loses {aim}." if aim else f"It is the best within {limit}, as far as the first draw tells.",
        f"It takes {chosen['seconds']:.2f} of the seconds of {wanted.against} alone, {load}: {gain}.",
        *_extreme(found, wanted.against),
        "",
        "For a configuration:",
        *presets(found),
    ]
    return "\n".join(lines)


def _extreme(found: Mapping[str, Any], against: str) -> list[str]:
    """Say where the chosen setting never hands over, or always, although another one differs in that."""
    share, tested = found["chosen"]["share"], found["reference"]["questions"]
    if 0 < share < 1 or all(row["share"] == share for row in found["compared"]):
        return []
    does = f"never asks {against}" if share == 0 else f"leaves everything to {against}"
    return [f"On those {tested} questions it {does}: without the policy the answers are the same, for less work."]


def _told(row: Mapping[str, Any]) -> str:
    quality = f"{row['alike']:.2f} alike" if "alike" in row else (
        "{:.1%} right ({:.1%} to {:.1%})".format(row["right"], *row["interval"])
    )  # fmt: skip
    return f"{quality}, cost {row['cost']:.2f}, seconds {row['seconds']:.2f}, {row['share']:.1%} of the tokens"


def presets(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of a configuration with the chosen setting as a preset."""
    return ["presets:", f"  calibrated: [{snippet(found['preset'])}]"]


def preset(found: Mapping[str, Any], wanted: Tuning, run: Mapping[str, Any], questions: int) -> str:
    """Write the chosen setting as a configuration has it, with what it was made from and what to expect of it."""
    tested = found["reference"]
    promise = "" if wanted.loss is None else (
        f"; loses at most {100 * wanted.loss:g} points with {wanted.confidence:.0%} confidence"
    )  # fmt: skip
    return "\n".join(
        [
            f"# waver calibrate policy {found['preset']['name']}, {datetime.now(UTC):%Y-%m-%d}: {questions} questions "
            f"(sha256 {run['sha256'][:12]}),",
            f"# expected from the {tested['questions']} that did not choose it, {wanted.at_once} at a time, "
            f"temperature {wanted.temperature:g}{promise}:",
            f"# {_told(found['chosen'])} on {wanted.against}",
            f"# ({wanted.against} alone: {_told(tested)})",
            *(f"# {line}" for line in _extreme(found, wanted.against)),
            *presets(found),
            "",
        ]
    )


def calibrate(
    questions: list[Question], search: Search, wanted: Tuning, base_url: str, key: str | None,
    out: Path, show: Callable[[str], None],
) -> int:  # fmt: skip
    """Compare and test, and write everything into `out`.

    Returns:
        The exit status: 1 if it cannot be done or nothing can be promised, 130 after ctrl-C.
    """
    notes = Console(stderr=True)
    run = asdict(wanted) | {"search": asdict(search), "sha256": digest(questions)}
    first = search.name == "adaptive_temperature"
    watched = (wanted.model or wanted.against) if first else str(search.fixed.get("small", "small"))

    async def ask() -> dict[str, Any]:
        known = {(line["setting"], line["line"]): line for line in begin(out, run, ANSWERS)}
        async with AsyncWaver(base_url=base_url, api_key=key, max_retries=5) as client:
            return await measure(Asking(client, (), wanted, out, known, watched), search, questions, notes)

    def write(name: str, text: str) -> None:
        job.replace_file(out / name, partial(Path.write_text, data=text, encoding="utf-8"))

    def work() -> int:
        found = asyncio.run(ask())
        write("report.json", json.dumps(found, indent=1) + "\n")
        if found["chosen"]:
            write("preset.yaml", preset(found, wanted, run, len(questions)))
        show(page(found, wanted, len(questions)))
        return 0 if found["chosen"] else 1

    return status_of(work, base_url, notes)
