"""Compare `diffadapt` with fixed strategies, chance and the oracle, on fresh sums.

All goes through a real server over HTTP. A probe's decisions are also dealt out at random: what that loses is what the
probe knows about single questions.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
import yaml
from rich.progress import Progress
from transformers import AutoTokenizer

from waver.benchmarks import report
from waver.benchmarks.answers import LARGE, Answer, OverHTTP, Setup, ask_all, closed_book
from waver.benchmarks.processes import go_first, serving
from waver.benchmarks.stats import Array, middle, percentiles, resamples, typical
from waver.clients.client import AsyncWaver, WaverReport
from waver.clients.client import report as report_of
from waver.policies.think.difficulty import DIFFICULTIES
from waver.resources import DEFAULT_CONFIG, MODELS
from waver.stats import wilson
from waver.training.pair.world import Item, documents, draw, score_text, steps_of
from waver.training.probe.labels import Answers
from waver.training.probe.shape import groups, u_shape

TASK = "arithmetic"
RULES = ("paper", "strict_easy", "oracle")
"""Rules of labels, with a probe for each."""
PLAIN, SHUFFLED, ORACLE = "plain", "shuffled", "oracle"
TEMPERATURE, TOP_P = 0.6, 0.95
"""As probes are trained; the pair's strategies leave them as the request has them."""
SAVING = 0.224
"""Aim: tokens saved against fixed normal, as in the paper, at no lower accuracy."""
COMPARED = (("normal", PLAIN), ("auto", PLAIN), ("auto", "normal"))
"""Pairs of strategies whose first tokens are compared."""
FIRST_TOKEN = 1.1
"""Aim: time to the first token, in multiples of that without a policy."""
MOST = 256
"""Tokens of an answer: half of them, which the strategy hard has, are enough for any sum's working."""
BLOCK = 50
"""Questions that one way answers before the next has its turn, so that a drift of the machine favours none."""
BEYOND = range(9, 13)
"""Steps of longer sums than any model of the pair has seen, to look for the U's right arm."""
PASSAGES = {"short": 0, "long": 12, "longest": 15}
"""Documents in front of a question, some 47 tokens each."""
WARM_UP = 3
START = 900.0
"""Seconds that a server may take to start."""
HEAD = ("", "accuracy", "tokens", "saved on normal", "over normal, points", "easy/normal/hard", "forced", "s")

app = report.command()


@dataclass(frozen=True, eq=False)
class StrategyResult:
    """One way to answer all questions: arrays `[n]`, an entry for each. `tokens` are those of the answer, with the
    strategy's words and what a forced answer took; `seconds` is what all took together."""

    right: Array
    tokens: Array
    entropies: Array
    chosen: tuple[str | None, ...]
    forced: float
    seconds: float

    @property
    def shares(self) -> Array:
        """Count how often each strategy was chosen, `[3]`."""
        return np.array([self.chosen.count(name) for name in DIFFICULTIES]) / len(self.chosen)


@asynccontextmanager
async def serve(settings: Mapping[str, Any], config: Mapping[str, Any]) -> AsyncGenerator[AsyncWaver, None]:
    """Yield a client of a server with the large engine; the server ends with the context."""
    engine: dict[str, Any] = {"backend": settings["backend"], "model": str((settings["models"] or MODELS) / LARGE)}
    if settings["backend"] == "vllm":
        engine["args"] = {"dtype": "float32", "max_num_seqs": settings["at_once"]}
    content = {"engines": {LARGE: engine}, "server": {"max_concurrency": settings["at_once"]}, **config}
    with tempfile.TemporaryDirectory() as scratch, serving(content, Path(scratch), START) as (url, _):
        async with AsyncWaver(base_url=f"{url}/v1") as client:
            yield client


def configuration(models: Path | None) -> dict[str, Any]:
    """Return the large model's probes, and the policies' defaults of the bundled pair."""
    folder = (models or MODELS) / LARGE / "probe"
    defaults = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))["policies"]
    return {
        "probes": {rule: str(folder / rule) for rule in RULES if (folder / rule / "probe.json").exists()},
        "policies": {name: defaults[name] for name in ("diffadapt", "forced_answer")},
    }


class Bench:
    """Asks a server the same questions in many ways."""

    def __init__(
        self, client: AsyncWaver, items: Sequence[Item], settings: Mapping[str, Any], words: Mapping[str, int]
    ):
        self.client, self.items, self.settings = client, items, settings
        self.asked = OverHTTP(client, 1.0)
        self.words = words
        """Tokens of each strategy's words."""
        self.questions = closed_book(items)

    def how(self, **parameters: Any) -> Setup:
        """Return one way: `diffadapt` with these parameters, none without any; all have the forced answer."""
        routed = ({"name": "diffadapt", **parameters},) if parameters else ()
        policy = (*routed, {"name": "forced_answer"})
        return Setup(LARGE, policy, TEMPERATURE, self.settings["max_tokens"], TOP_P)

    async def run(self, ways: Mapping[str, Sequence[Setup]], advance: Callable[[], Any]) -> dict[str, StrategyResult]:
        """Return every way, with a `Setup` for each question; the ways take turns."""
        told: dict[str, list[Answer]] = {name: [] for name in ways}
        spent = dict.fromkeys(ways, 0.0)
        for start in range(0, len(self.items), BLOCK):
            block = slice(start, start + BLOCK)
            for name, hows in ways.items():
                begun = time.perf_counter()
                told[name] += await ask_all(
                    self.asked, self.questions[block], hows[block], self.settings["at_once"], advance, seed=start
                )
                spent[name] += time.perf_counter() - begun
        return {name: self._told(answers, spent[name]) for name, answers in told.items()}

    def _told(self, answers: Sequence[Answer], seconds: float) -> StrategyResult:
        right = [score_text(TASK, i.prompt, i.answer, a.text) for i, a in zip(self.items, answers, strict=True)]
        return StrategyResult(
            np.array(right, float),
            np.array([a.length + self.words.get(a.strategy or "", 0) for a in answers], float),
            np.array([a.mean_entropy for a in answers], float),
            tuple(a.strategy for a in answers),
            sum(a.forced for a in answers) / len(answers),
            seconds,
        )


def levels(items: Sequence[Item]) -> list[int]:
    """Return the number of steps of each sum."""
    return [steps_of(item.prompt) for item in items]


def plain_answers(run: StrategyResult) -> list[Answers]:
    """Return answers as labels are made from, one to each question."""
    told = zip(run.right.tolist(), run.tokens.tolist(), run.entropies.tolist(), strict=True)
    return [Answers(right, tokens, entropy, 0.0) for right, tokens, entropy in told]


def ways(bench: Bench, rules: Sequence[str]) -> dict[str, Sequence[Setup]]:
    """Return no strategy, fixed ones, and every probe."""
    n = len(bench.items)
    fixed: dict[str, Sequence[Setup]] = {name: [bench.how(strategy=name)] * n for name in DIFFICULTIES}
    routed = {f"diffadapt, {rule}": [bench.how(strategy="auto", probe=rule)] * n for rule in rules}
    return {PLAIN: [bench.how()] * n, **fixed, **routed}


def controls(bench: Bench, rules: Sequence[str], found: Mapping[str, StrategyResult]) -> dict[str, Sequence[Setup]]:
    """Return the oracle, and as many of each strategy as each probe chose, dealt out at random."""
    made: dict[str, Sequence[Setup]] = {
        ORACLE: [bench.how(strategy=ORACLE, answer=item.answer) for item in bench.items]
    }
    for rule in rules:
        mix = dict(zip(DIFFICULTIES, found[f"diffadapt, {rule}"].shares.tolist(), strict=True))
        made[f"{SHUFFLED}, {rule}"] = [bench.how(strategy=SHUFFLED, mix=mix)] * len(bench.items)
    return made


async def ask(
    bench: Bench, asked: Mapping[str, Sequence[Setup]], words: str, bar: Progress
) -> dict[str, StrategyResult]:
    task = bar.add_task(words, total=len(bench.items) * len(asked))
    return await bench.run(asked, lambda: bar.advance(task))


def rows(found: Mapping[str, StrategyResult]) -> list[dict[str, Any]]:
    """Return a way's figures, with 95 % intervals. `over` a rival is accuracy less the rival's, from a paired
    bootstrap; the shuffled rival is the mean of all ways to deal a probe's decisions out anew."""
    normal = found["normal"]
    n = len(normal.right)
    weights = resamples(n)
    fixed = {key: np.stack([getattr(found[name], key) for name in DIFFICULTIES]) for key in ("right", "tokens")}
    out = []
    for name, run in found.items():
        gap = run.right - normal.right
        row: dict[str, Any] = {
            "way": name,
            "accuracy": float(run.right.mean()),
            "accuracy_interval": wilson(int(run.right.sum()), n),
            "tokens": float(run.tokens.mean()),
            "saving": float(1 - run.tokens.mean() / normal.tokens.mean()),
            "saving_interval": percentiles(1 - (weights @ run.tokens) / (weights @ normal.tokens)),
            "over_normal": float(gap.mean()),
            "over_normal_interval": percentiles(weights @ gap),
            "forced": run.forced,
            "seconds": run.seconds,
            "entropy": float(run.entropies.mean()),
            "mix": dict(zip(DIFFICULTIES, run.shares.tolist(), strict=True)) if run.chosen[0] else None,
        }
        if name.startswith("diffadapt"):
            chance = run.right - run.shares @ fixed["right"]
            row |= {
                "shuffled_accuracy": float((run.shares @ fixed["right"]).mean()),
                "shuffled_tokens": float((run.shares @ fixed["tokens"]).mean()),
                "over_shuffled": float(chance.mean()),
                "over_shuffled_interval": percentiles(weights @ chance),
            }
            row["met"] = {
                "saving": row["saving"] >= SAVING and row["over_normal"] >= 0,
                "shuffled": row["over_shuffled_interval"][0] > 0,
            }
        out.append(row)
    return out


def mixes(found: Mapping[str, StrategyResult], at: Sequence[int]) -> dict[str, dict[int, list[float]]]:
    """Return shares of the strategies by the length of the chain, as the probes and the oracle chose them."""
    steps = np.array(at)
    return {
        name: {
            int(level): [float(np.mean(np.array(run.chosen)[steps == level] == each)) for each in DIFFICULTIES]
            for level in sorted(set(at))
        }
        for name, run in found.items()
        if name.startswith("diffadapt") or name == ORACLE
    }


async def first_tokens(bench: Bench, rule: str, count: int, seed: int, bar: Progress) -> dict[str, Any]:
    """Return milliseconds to the first token, one request at a time: without a policy, with a fixed strategy, with a
    probe.

    No two requests begin alike, so that nobody finds what another has left in a cache.
    """
    policies: dict[str, list[dict[str, Any]]] = {
        PLAIN: [],
        "normal": [{"name": "diffadapt", "strategy": "normal"}],
        "auto": [{"name": "diffadapt", "probe": rule}],
    }
    total = count + WARM_UP
    items = draw(TASK, seed + 1, len(PASSAGES) * total * len(policies))
    texts = [each.text for each in documents()]
    task = bar.add_task("first tokens", total=len(items))
    found: dict[str, Any] = {}
    for length, passages in PASSAGES.items():
        spent: dict[str, list[float]] = {name: [] for name in policies}
        sizes, begun = [], []
        for run in range(total):
            order = list(policies)[run % len(policies) :] + list(policies)[: run % len(policies)]
            for name in order:
                question, start = items.pop().prompt, len(items) * 7
                if passages:
                    before = [texts[(start + i) % len(texts)] for i in range(passages)]
                    question = "\n".join([f"Request {start}.", *before, "", question])
                took, size, said = await first_token(bench.client, question, policies[name])
                if run >= WARM_UP:
                    spent[name].append(1000 * took)
                    sizes.append(size)
                    if name == "auto":
                        guess = (said.difficulty or {}).get("head_start")
                        begun.append(None if guess is None else guess == said.strategy)
                bar.advance(task)
        found[length] = {
            "prompt_tokens": int(np.median(sizes)),
            "milliseconds": {name: middle(values) for name, values in spent.items()},
            "ratios": {
                f"{name} to {other}": typical([a / b for a, b in zip(spent[name], spent[other], strict=True)])
                for name, other in COMPARED
            },
        }
        found[length]["met"] = found[length]["ratios"][f"auto to {PLAIN}"]["median"] <= FIRST_TOKEN
        by_start = {
            kind: [a / b for a, b, right in zip(spent["auto"], spent[PLAIN], begun, strict=True) if right is wanted]
            for kind, wanted in (("right", True), ("wrong", False))
        }
        found[length]["head_starts"] = {kind: typical(made) for kind, made in by_start.items() if made}
    return found


async def first_token(
    client: AsyncWaver, question: str, policy: list[dict[str, Any]]
) -> tuple[float, int, WaverReport]:
    """Return seconds until the first text of a streamed answer, the tokens of its prompt, and its report.

    Raises:
        RuntimeError: there was no text.
    """
    begun = time.perf_counter()
    stream = await client.chat.completions.create(
        model=LARGE,
        messages=[{"role": "user", "content": question}],
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"policy": policy, "min_tokens": 4},  # else some answers are empty
    )
    took = 0.0
    async for chunk in stream:
        if not took and chunk.choices and chunk.choices[0].delta.content:
            took = time.perf_counter() - begun
    if not took or chunk.usage is None:
        raise RuntimeError("an answer has no text, or no end")
    return took, chunk.usage.prompt_tokens, report_of(chunk)


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    """Raises:
    ValueError: the large model has no probe."""
    config = configuration(settings["models"])
    rules = list(config["probes"])
    if not rules:
        raise ValueError("the large model has no probe: waver train probe --out models/large/probe makes one")
    tokenizer = AutoTokenizer.from_pretrained((settings["models"] or MODELS) / LARGE)
    told = config["policies"]["diffadapt"]
    words: dict[str, int] = {
        name: len(tokenizer.encode(told[name]["words"], add_special_tokens=False)) for name in DIFFICULTIES
    }
    items = draw(TASK, settings["seed"], settings["n"])
    at = levels(items)
    waiting = bar.add_task("starting the server", total=None)
    client_first = go_first()
    async with serve(settings, config) as client:
        bar.remove_task(waiting)
        bench = Bench(client, items, settings, words)
        found = await ask(bench, ways(bench, rules), "asking", bar)
        found |= await ask(bench, controls(bench, rules, found), "controls", bar)
        times = await first_tokens(bench, rules[0], settings["timed"], settings["seed"], bar)
        longer = [
            item for steps in BEYOND for item in draw(TASK, settings["seed"] + 2, settings["longer"], steps=steps)
        ]
        beyond = Bench(client, longer, settings, words)
        more = await ask(beyond, ways(beyond, rules), "longer sums", bar)
    answers = [*plain_answers(found[PLAIN]), *plain_answers(more[PLAIN])]
    shaped = groups([*at, *levels(longer)], answers)
    taught = [group for group in shaped if group.level < min(BEYOND)]
    return {
        "rows": rows(found),
        "beyond": rows(more),
        "mixes": mixes(found, at),
        "levels": [asdict(group) for group in shaped],
        "u_shape": {"taught": u_shape(taught), "beyond": u_shape(shaped)},
        "first_tokens": times,
        "client_first": client_first,
        "probe": rules[0],
    }


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings = numbers["settings"]
    return [
        "# As much thought as a question needs",
        f"{settings['n']} sums of 1 to 8 steps (draw {settings['seed']}, which no probe was trained on), the bundled "
        f"large model through {settings['backend']} and a server over HTTP, temperature {TEMPERATURE:g}, top_p "
        f"{TOP_P:g}, at most {settings['max_tokens']} tokens, `forced_answer` on for all. Tokens are an answer's, the "
        "strategy's words included. In brackets: 95 % intervals (Wilson for shares, paired bootstrap for "
        f"differences). Seconds: all questions, {settings['at_once']} at a time; the ways take turns.",
        "![Accuracy against tokens; entropy by length; strategies by length]"
        f"({report.by_backend('diffadapt', settings['backend'])}.png)",
        report.table(HEAD, [_row(row) for row in numbers["rows"]]),
        "`diffadapt` is named with the rule of its probe's labels. `shuffled` deals out as many of each strategy at "
        "random, `oracle` knows the answer and takes the cheapest strategy that is right (its time is that of all "
        "three).",
        "## Aims",
        *(f"- {_aims(row)}" for row in numbers["rows"] if "met" in row),
        "## Longer sums",
        f"{settings['longer']} sums each of {BEYOND[0]} to {BEYOND[-1]} steps, more than the model was ever taught:",
        report.table(HEAD, [_row(row) for row in numbers["beyond"]]),
        "## Is there a U?",
        f"On the sums above: {numbers['u_shape']['taught'][1]}",
        f"With the longer ones: {numbers['u_shape']['beyond'][1]}",
        "Mean entropy of the tokens of plain answers, by steps:",
        report.table(
            ("steps", "questions", "right", "tokens", "entropy, nats"),
            [_level(each) for each in numbers["levels"]],
        ),
        "## Which strategy at which length",
        "Easy / normal / hard, in % of the questions:",
        report.table(
            ("", *(f"{level} steps" for level in next(iter(numbers["mixes"].values()), {}))),
            [
                [name, *(" / ".join(f"{100 * share:.0f}" for share in shares) for shares in by_level.values())]
                for name, by_level in numbers["mixes"].items()
            ],
        ),
        "## Time to the first token",
        *(_first(length, told) for length, told in numbers["first_tokens"].items()),
        "*normal* is a strategy without a probe. The bundled probes have no words, so under *auto* an answer is begun "
        "with the strategy that most questions lately came to, and its first pass brings what the probe reads; where "
        "the probe then says otherwise, the answer is begun anew." + report.client_first(numbers),
    ]  # fmt: skip


def _row(row: Mapping[str, Any]) -> list[str]:
    mix = row["mix"]
    return [
        f"fixed {row['way']}" if row["way"] in DIFFICULTIES else row["way"],
        report.percent(row["accuracy"], row["accuracy_interval"]),
        f"{row['tokens']:.1f}",
        report.percent(row["saving"], row["saving_interval"]),
        report.points(row["over_normal"], row["over_normal_interval"]),
        "–" if mix is None else " / ".join(f"{100 * mix[name]:.0f}" for name in DIFFICULTIES),
        report.percent(row["forced"]),
        f"{row['seconds']:.1f}",
    ]


def _level(each: Mapping[str, Any]) -> list[str]:
    figures = (f"{each['level']:g}", str(each["count"]), report.percent(each["right"]))
    return [*figures, f"{each['tokens']:.1f}", f"{each['entropy']:.4f}"]


def _aims(row: Mapping[str, Any]) -> str:
    met = {key: report.verdict(value) for key, value in row["met"].items()}
    return (
        f"`{row['way']}`: {report.percent(row['saving'], row['saving_interval'])} fewer tokens than fixed normal, "
        f"{report.points(row['over_normal'], row['over_normal_interval'])} points. Aim (at least "
        f"{report.percent(SAVING)} fewer, accuracy no lower): {met['saving']}. The same decisions "
        f"shuffled: {report.percent(row['shuffled_accuracy'])} with {row['shuffled_tokens']:.1f} tokens; the probe is "
        f"{report.points(row['over_shuffled'], row['over_shuffled_interval'])} points above. Aim (above for sure): "
        f"{met['shuffled']}."
    )


def _first(length: str, told: Mapping[str, Any]) -> str:
    spent, ratios = told["milliseconds"], told["ratios"]
    said = ", ".join(f"{name} {spent[name]['median']:.1f} ms" for name in (PLAIN, "normal", "auto"))
    compared = ", ".join(f"{name} {report.ratio(value)}" for name, value in ratios.items())
    ends = {"right": "with the right strategy", "wrong": "with another"}
    starts = "".join(
        f" Auto to plain where the answer was begun {ends[kind]} ({value['runs']} requests): {report.ratio(value)}."
        for kind, value in told["head_starts"].items()
    )
    return (
        f"{length.capitalize()} prompts (some {told['prompt_tokens']} tokens), one at a time, medians of "
        f"{spent[PLAIN]['runs']}: {said}. Ratios, with their intervals: {compared}. Aim (auto to plain at most "
        f"{FIRST_TOKEN:g}): {report.verdict(told['met'])}.{starts}"
    )


@app.command()
def main(
    context: typer.Context,
    n: Annotated[int, typer.Option(min=8, help="Questions.")] = 800,
    backend: Annotated[Literal["transformers", "vllm"], typer.Option(help="What runs the model.")] = "transformers",
    timed: Annotated[int, typer.Option(min=1, help="Requests of a kind for times to the first token.")] = 60,
    longer: Annotated[int, typer.Option(min=1, help="Plain sums of each length beyond 8 steps.")] = 40,
    max_tokens: report.MaxTokens = MOST,
    seed: report.Seed = 61100,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = 32,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare `diffadapt` with each rule of labels, its decisions shuffled, every fixed strategy, none, and the oracle.

    Writes diffadapt.json, .md, .png and .svg (diffadapt_vllm for that backend). About 15 minutes on two cores.
    """
    report.need_extra()
    from waver.benchmarks.figures import diffadapt as plot

    settings = dict(context.params)
    name = report.by_backend("diffadapt", backend)
    if backend == "vllm":
        report.need_vllm()
    conditions = report.conditions("diffadapt", settings)
    with report.progress() as bar:
        try:
            found = conditions | asyncio.run(measure(settings, bar))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    plot(found, out, name)
    report.write(out, name, found, page(found))


if __name__ == "__main__":
    app()
