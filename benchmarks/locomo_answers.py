"""Measure answers about long conversations: a language model with what memories recall, with search, and with history.

LoCoMo's conversations are brought to a server, which keeps turns as they are for `simplemem`, and whole sessions with
words of their own for `memgas`. Every way puts something else in front of the same questions: nothing, the latest
turns, the turns nearest in meaning, what `simplemem` recalls (as many turns), or the one session that `memgas` does.
Answers are scored by the F1 of their words against the annotated answer, in lower case, without punctuation and
articles. `memgas` is asked without its filter, which takes a model that copies out reliably.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from waver import job
from waver.benchmarks import report
from waver.benchmarks.asked import Asked, engine, served, user
from waver.benchmarks.facts import plain
from waver.benchmarks.locomo_data import Conversation, Question, Said, load
from waver.benchmarks.locomo_server import Remembered
from waver.benchmarks.stats import percentiles, resamples
from waver.policies.remember.simplemem import INSTRUCTION
from waver.policies.retrieve.quoting import quoted
from waver.retrieval.config import DEFAULT_EMBEDDER
from waver.retrieval.embedder import Embedder

WORK = Path("data/bench/locomo-answers")
WAYS = ("closed book", "dense", "simplemem", "latest turns", "memgas")
SHORT = " Answer in a few words."
TOKENS = 16

app = report.command()


def f1(answer: str, gold: str) -> float:
    """Return the F1 of the words of an answer."""
    said, wanted = Counter(plain(answer).split()), Counter(plain(gold).split())
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def chosen(conversations: Sequence[Conversation], count: int, seed: int) -> list[tuple[Conversation, Question]]:
    """Return questions by chance, in the order of the data, so that prompts of one conversation come together."""
    every = [(each, question) for each in conversations for question in each.questions]
    places = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[i] for i in sorted(places)]


def line(turn: Said) -> str:
    """Return a turn as it is quoted."""
    return f"{turn.time:%Y-%m-%d} {turn.speaker}: {turn.text}"


def bodies(
    asked: Sequence[tuple[Conversation, Question]], embedder: Embedder, ways: Sequence[str], depth: int, history: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the requests by way and question.

    Args:
        depth: turns that are quoted. history: words of the latest turns.
    """
    vectors = {each.name: embedder.embed([f"{t.speaker}: {t.text}" for t in each.turns]) for each, _ in asked}
    memories = {"name": "simplemem", "remember": False, "plan": "words", "least": depth, "most": depth}
    episodes = {"name": "memgas", "remember": False, "episodes": 1, "filter": "none"}
    found: dict[str, dict[str, dict[str, Any]]] = {way: {} for way in ways}
    for i, (conversation, question) in enumerate(asked):
        text, turns = question.text + SHORT, conversation.turns
        near = np.argsort(-(vectors[conversation.name] @ embedder.question(question.text)), kind="stable")[:depth]
        shown: dict[str, Sequence[Said]] = {
            "closed book": (),
            "dense": [turns[place] for place in near],
            "latest turns": latest(turns, history),
        }
        for way in ways:
            body: dict[str, Any] = {"max_tokens": TOKENS, "messages": user(text)}
            if way in shown:
                body["messages"] = user(quoted([line(turn) for turn in shown[way]], INSTRUCTION) + text)
            else:
                policy = memories if way == "simplemem" else episodes
                body |= {"policy": [policy], "user": f"{conversation.name}/{way}"}
            found[way][f"{way} {i}"] = body
    return found


def latest(turns: Sequence[Said], most: int) -> Sequence[Said]:
    """Return the last turns, of at most so many words."""
    total, first = 0, len(turns)
    while first and total + len(turns[first - 1].text.split()) <= most:
        first -= 1
        total += len(turns[first].text.split())
    return turns[first:]


def bring(http: Any, conversations: Sequence[Conversation], ways: Sequence[str]) -> None:
    """Bring every conversation to the memories that are asked."""
    policies: Mapping[str, dict[str, Any]] = {
        "simplemem": {"extraction": "turns", "consolidate": False},
        "memgas": {"name": "memgas", "extraction": "words"},
    }
    for each in conversations:
        for way, policy in policies.items():
            if way in ways:
                Remembered(http).bring(each, f"{each.name}/{way}", policy)


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    settings = numbers["settings"]
    rows = [
        [way, f"{100 * each['f1']:.1f} ({100 * each['interval'][0]:.1f}–{100 * each['interval'][1]:.1f})",
         f"{100 * each['gain']:+.1f} ({100 * each['gain_interval'][0]:+.1f} to {100 * each['gain_interval'][1]:+.1f})",
         f"{each['tokens']:,.0f}"]
        for way, each in numbers["ways"].items()
    ]  # fmt: skip
    return [
        "# Answers about long conversations",
        f"{numbers['questions']} questions of LoCoMo's conversations {', '.join(numbers['conversations'])}, answered "
        f"by {numbers['model']} ({settings['dtype']}, greedy, {TOKENS} tokens): F1 of the words (times 100) with its "
        "95 % bootstrap interval, the gain over `closed book` on the same questions, and tokens of a prompt. `dense` "
        f"and `simplemem` quote {settings['depth']} turns, `latest turns` the end of the conversation, at most "
        f"{settings['history']} words, `memgas` one session.",
        report.table(["way", "F1", "gain", "prompt tokens"], rows),
    ]


@app.command()
def main(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="LoCoMo's ten conversations, as a ZIP of JSON files.", exists=True)],
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The model that answers.")],
    conversations: Annotated[int, typer.Option(min=1, max=10, help="Of the data, the first by name.")] = 2,
    n: Annotated[int, typer.Option(min=1, help="Questions.")] = 100,
    depth: Annotated[int, typer.Option(min=1, help="Turns that are quoted.")] = 5,
    history: Annotated[int, typer.Option(min=1, help="Words of the latest turns.")] = 1000,
    ways: Annotated[str, typer.Option(help="Ways, separated by commas.")] = ",".join(WAYS),
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Seed of the choice of questions.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure a model's answers about LoCoMo's conversations by what is put in front of the questions.

    Writes locomo_answers.json and .md. A model of half a billion parameters takes an hour of one core.
    """
    told = {"data": data.name, "model": model.name}
    settings = {key: value for key, value in context.params.items() if key != "work"} | told
    conditions = report.conditions("locomo-answers", settings)
    wanted_ways = [way for way in WAYS if way in ways.split(",")]
    job.claim(work, {**told, "conversations": conversations, "n": n, "depth": depth, "history": history, "seed": seed})
    some = load(data)[:conversations]
    asked = chosen(some, n, seed)
    wanted = bodies(asked, Embedder(DEFAULT_EMBEDDER), wanted_ways, depth, history)
    answers = Asked(work / "answers.jsonl")
    every = {key: body for of_way in wanted.values() for key, body in of_way.items()}
    if left := answers.left(every):
        with served(engine(model, dtype)) as http, report.progress() as bar:
            task = bar.add_task("requests", total=len(every), completed=len(every) - len(left))
            bring(http, some, [way for way in wanted_ways if answers.left(wanted[way])])
            for way, of_way in wanted.items():
                one = 1 if way == "latest turns" else None  # the next question reads the same history from the cache
                answers.ask(http, of_way, lambda: bar.advance(task), one)
    weights = resamples(len(asked))
    scores = {
        way: np.array([f1(answers.answers[key]["text"], q.answer) for key, (_, q) in zip(of_way, asked, strict=True)])
        for way, of_way in wanted.items()
    }
    base = scores[wanted_ways[0]]
    found = {
        way: {
            "f1": float(values.mean()),
            "interval": percentiles(weights @ values),
            "gain": float((values - base).mean()),
            "gain_interval": percentiles(weights @ (values - base)),
            "tokens": float(np.mean([answers.answers[key]["prompt_tokens"] for key in wanted[way]])),
        }
        for way, values in scores.items()
    }
    numbers = {
        "model": model.name,
        "conversations": [each.name for each in some],
        "questions": len(asked),
        "ways": found,
    }
    report.write(out, "locomo_answers", conditions | numbers, page(conditions | numbers))


if __name__ == "__main__":
    app()
