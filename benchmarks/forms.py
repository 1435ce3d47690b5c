"""Answers that must have a form, on one engine and handed over between two: how many have it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from waver.benchmarks import report
from waver.benchmarks.processes import serving
from waver.resources import MODELS
from waver.stats import wilson

TEMPLATE = Path(__file__).resolve().parent.parent / "tests" / "server" / "hermes.jinja"
"""A chat template that shows tools, for models that have none."""
AT_ONCE = 8
START = 600.0
"""Seconds that a server is given to load its libraries and models."""
NAME = "forms"

app = report.command()


class Trip(BaseModel):
    """The form of the answers that are asked for."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=30)
    days: int = Field(ge=1, le=99)
    means: list[Literal["train", "ship", "foot"]] = Field(max_length=4)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a trip."""
    return Trip.model_json_schema()


def forms() -> dict[str, dict[str, Any]]:
    """Return the fields of a request that ask for a trip, by the way to ask."""
    tool = {"type": "function", "function": {"name": "plan", "description": "Plan a trip.", "parameters": schema()}}
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema(), "strict": True}}
    return {
        "a forced call": {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False},
        "json_schema": {"response_format": wanted},
    }


def ways(threshold: float) -> dict[str, list[dict[str, Any]]]:
    """Return the policies, by name; on one engine the large one writes."""
    pair = {"small": "small", "large": "large"}
    ead = {"name": "ead", **pair, "threshold": threshold, "window": 1, "min_tokens": 1}
    return {"one engine": [], "ead": [ead], "random_switch": [{"name": "random_switch", **pair, "rate": 0.5}]}


@dataclass
class Outcome:
    """The answers of one way to ask, under one policy; `valid` ones have the form, `handed_over` ones have tokens of
    both engines."""

    form: str
    way: str
    count: int
    valid: int = 0
    handed_over: int = 0
    switches: int = 0
    seconds: float = 0.0
    endings: dict[str, int] | None = None


def text_of(choice: Any, form: str) -> str:
    """Return the JSON text of an answer; empty where there is none."""
    if form == "json_schema":
        return str(choice.message.content or "")
    calls = choice.message.tool_calls or []
    return str(calls[0].function.arguments) if len(calls) == 1 else ""


def is_trip(text: str) -> bool:
    """Return whether a text is a trip."""
    try:
        Trip.model_validate_json(text, strict=True)
    except ValidationError:
        return False
    return True


async def measure(client: openai.AsyncOpenAI, form: str, way: str, count: int, threshold: float) -> Outcome:
    """Ask so many seeded questions, some at a time."""
    turn, found = asyncio.Semaphore(AT_ONCE), Outcome(form, way, count, endings={})
    endings: dict[str, int] = {}

    async def one(seed: int) -> None:
        messages = [{"role": "user", "content": f"Plan trip number {seed}."}]
        options: Any = {"model": "large", "messages": messages, "temperature": 1, "seed": seed, "max_tokens": 200}
        body = {"policy": ways(threshold)[way]}
        async with turn:
            answer = await client.chat.completions.create(**options, **forms()[form], extra_body=body)
        choice, told = answer.choices[0], (answer.model_extra or {})["waver"]
        found.valid += is_trip(text_of(choice, form))
        found.handed_over += sum(tokens > 0 for tokens in told["tokens"].values()) > 1
        found.switches += told["switches"]
        endings[choice.finish_reason] = endings.get(choice.finish_reason, 0) + 1

    began = time.perf_counter()
    await asyncio.gather(*(one(seed) for seed in range(count)))
    found.seconds, found.endings = time.perf_counter() - began, endings
    return found


@app.command()
def main(
    models: report.Models = None,
    count: Annotated[int, typer.Option(min=1, help="Requests for each form and way.")] = 100,
    threshold: Annotated[float, typer.Option(help="Of `ead`, in nats.")] = 0.3,
    url: Annotated[
        str | None,
        typer.Option(
            help="A server with engines `small` and `large` whose templates show tools, up to its port.",
            show_default="one is started",
        ),
    ] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Ask for forced calls and JSON forms at temperature 1, on one engine and under policies that hand over.

    An answer is valid if its JSON is what the schema says, as pydantic reads it. One that its limit of 200 tokens cuts
    off is not.

        waver bench forms
    """
    with nullcontext(url) if url else started(models or MODELS) as where:
        outcomes = asyncio.run(every(where, count, threshold))
    numbers = report.conditions(NAME, {"models": models, "count": count, "threshold": threshold})
    numbers["outcomes"] = [asdict(each) for each in outcomes]
    report.write(out, NAME, numbers, page(outcomes))


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """Yield the address of a server of the pair in a folder."""
    with tempfile.TemporaryDirectory() as scratch, serving(configuration(folder), Path(scratch), START) as (url, _):
        yield url


def configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration of the pair in a folder; models without tools in their template get one."""
    engines = {}
    for name in ("small", "large"):
        engine = {"backend": "transformers", "model": str(folder / name)}
        template = folder / name / "chat_template.jinja"
        if not (template.exists() and "tools" in template.read_text(encoding="utf-8")):
            engine["chat_template"] = str(TEMPLATE)
        engines[name] = engine
    return {"engines": engines, "presets": {}, "default_preset": None}


async def every(url: str, count: int, threshold: float) -> list[Outcome]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        return [
            await measure(client, form, way, count, threshold) for form in forms() for way in ways(threshold)
        ]  # one after another: they share the engines


def page(outcomes: list[Outcome]) -> Iterator[str]:
    """Write the table."""
    yield "# Forms across hand-overs"
    rows = []
    for each in outcomes:
        low, high = wilson(each.valid, each.count)
        share = f"{each.valid} of {each.count} ({low:.1%} to {high:.1%})"
        endings = ", ".join(f"{name} {count}" for name, count in sorted((each.endings or {}).items()))
        counts = [str(each.handed_over), str(each.switches)]
        rows.append([each.form, each.way, share, *counts, endings, f"{each.seconds:.0f}"])
    head = ["form", "way", "valid (95 % interval)", "by both engines", "switches", "endings", "s"]
    yield report.table(head, rows)
    yield (
        "Trips as JSON, at temperature 1: by a forced call of a tool, or as a `response_format`. An answer is valid if "
        "pydantic reads it as what the schema says."
    )
