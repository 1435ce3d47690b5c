"""Ask one model with random weights about pictures, under vLLM and under transformers, and compare the answers token
by token."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image

from waver.benchmarks import random_idefics, report
from waver.benchmarks.processes import serving
from waver.training.vision.pictures import draw, questions

NAME = "vllm-pictures"
START = 600.0
"""Seconds that vLLM is given to start."""
SIZES = ((32, 32), (100, 50), (40, 90))
ARGS = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8}
ENGINES: dict[str, dict[str, Any]] = {
    "vllm": {"backend": "vllm", "args": ARGS},
    "transformers": {"backend": "transformers", "dtype": "float32"},
}

app = report.command()


@app.command()
def main(
    count: Annotated[int, typer.Option(min=1, help="Questions, each about one to three pictures.")] = 30,
    seed: report.Seed = 900,
    max_tokens: report.MaxTokens = 16,
    out: report.Out = report.RESULTS,
) -> None:
    """Send pictures of several sizes to a server with one model under both backends, and compare the answers.

    Needs vLLM. The model is a tiny Idefics3 of random weights: what it says means nothing, and depends on every pixel.
    """
    report.need_vllm()
    settings = {"count": count, "seed": seed, "max_tokens": max_tokens}
    with tempfile.TemporaryDirectory() as scratch, report.progress() as bar, started(Path(scratch)) as url:
        asked = [conversation(seed, i) for i in range(count)]
        with httpx.Client(base_url=url, timeout=300) as http:
            pairs = [
                tuple(answer(http, engine, each, max_tokens) for engine in ENGINES)
                for each in bar.track(asked, description="questions")
            ]
    numbers = report.conditions(NAME, settings) | compare(pairs)
    report.write(out, "vllm_pictures", numbers, page(numbers))


@contextmanager
def started(scratch: Path) -> Iterator[str]:
    """Yield the address of a server of the model under both backends."""
    random_idefics.save(scratch / "model")
    engines = {name: {**engine, "model": str(scratch / "model")} for name, engine in ENGINES.items()}
    with serving({"engines": engines}, scratch, START) as (url, _):
        yield url


def conversation(seed: int, number: int) -> list[dict[str, Any]]:
    """Make a message of one to three pictures, and a question about the first."""
    pictures = [draw(seed, number * 3 + i) for i in range(1 + number % 3)]
    parts = [_part(picture.pixels, SIZES[(number + i) % len(SIZES)]) for i, picture in enumerate(pictures)]
    asked = next(iter(questions(pictures[0])))[0]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": asked}]}]


def _part(pixels: Any, size: tuple[int, int]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def answer(http: httpx.Client, engine: str, messages: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
    """Return what an engine answers, greedily: the `prompt` tokens, and `ids` and `entropies` of the answer's."""
    body = {"model": engine, "messages": messages, "temperature": 0, "max_tokens": max_tokens, "trace": True}
    made = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    trace = made["waver"]["trace"]
    ids, entropies = [each["id"] for each in trace], [each["entropy"] for each in trace]
    return {"prompt": made["usage"]["prompt_tokens"], "ids": ids, "entropies": entropies}


def compare(pairs: list[tuple[dict[str, Any], ...]]) -> dict[str, Any]:
    """Count answers that are the same, and find the largest difference of an entropy in nats among these."""
    same = [(one, other) for one, other in pairs if one["ids"] == other["ids"]]
    apart = [abs(a - b) for one, other in same for a, b in zip(one["entropies"], other["entropies"], strict=True)]
    return {
        "answers": len(pairs),
        "same": len(same),
        "same_prompt": sum(one["prompt"] == other["prompt"] for one, other in pairs),
        "different_answers": len({tuple(one["ids"]) for one, _ in pairs}),
        "tokens": sum(len(one["ids"]) for one, _ in pairs),
        "prompt_tokens": [min(one["prompt"] for one, _ in pairs), max(one["prompt"] for one, _ in pairs)],
        "entropy_apart": max(apart, default=0.0),
    }


def page(numbers: dict[str, Any]) -> Iterator[str]:
    yield "# Pictures under vLLM"
    low, high = numbers["prompt_tokens"]
    yield (
        f"{numbers['same']} of {numbers['answers']} greedy answers of one model ({numbers['tokens']} tokens, "
        f"{numbers['different_answers']} different answers) are the same token by token under vLLM and under "
        f"transformers, and {numbers['same_prompt']} prompts have as many tokens ({low} to {high}); the entropies of "
        f"the same answers are at most {numbers['entropy_apart']:.1e} nats apart. The model is an Idefics3 of random "
        "weights, which cuts pictures into tiles; each question has one to three of them, of three sizes."
    )
