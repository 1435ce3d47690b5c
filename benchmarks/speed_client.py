"""Put a load on a server and time it: through `vllm bench serve` where vLLM is installed, or with a client of our own
that measures the same."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import httpx

from waver.benchmarks.quality_peers import Peer
from waver.benchmarks.vllm_serving import Client
from waver.clients.questions import Refused

Figures = dict[str, float]
"""`completed`, `duration` (s), `output_throughput` (tokens a second), and medians in ms of the time to the first token,
between chunks, of an output token, and of whole answers, under the names that vLLM gives them."""
PATIENCE = 3600.0
"""Seconds that an answer may take."""


@dataclass(frozen=True)
class Load:
    """Questions, asked so many at a time."""

    peer: Peer
    prompts: Sequence[str]
    concurrency: int
    max_tokens: int
    temperature: float
    seed: int

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a request besides model, messages and streaming."""
        given = {"temperature": self.temperature, "seed": self.seed, **self.peer.body, **dict(self.peer.options)}
        if self.peer.policy is not None:  # a run must not find its prompts in the cache of the one before
            given["cache_salt"] = f"{self.peer.key}:{self.seed}"
        return given


class Loader(Protocol):
    """A client that runs loads."""

    name: str

    def run(self, load: Load) -> Figures:
        """Raises:
        Refused: a request failed."""
        ...


class OwnClient:
    """Streams chat completions with httpx."""

    name = "a client of Waver's own (httpx)"

    def __init__(self, base_url: str, key: str | None) -> None:
        self._url = f"{base_url}/chat/completions"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def run(self, load: Load) -> Figures:
        return asyncio.run(self._run(load))

    async def _run(self, load: Load) -> Figures:
        free = asyncio.Semaphore(load.concurrency)
        async with httpx.AsyncClient(timeout=PATIENCE, headers=self._headers, trust_env=False) as http:

            async def one(prompt: str) -> Timed:
                async with free:
                    return await self._ask(http, load, prompt)

            began = time.perf_counter()
            answers = await asyncio.gather(*map(one, load.prompts))
            return figures(answers, time.perf_counter() - began)

    async def _ask(self, http: httpx.AsyncClient, load: Load, prompt: str) -> Timed:
        body = {
            **load.fields,
            "model": load.peer.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": load.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        times: list[float] = []
        tokens = 0
        async with http.stream("POST", self._url, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise Refused(f"{load.peer.name}: {response.status_code} {response.text[:300]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Refused(f"{load.peer.name}: {event['error'].get('message', event['error'])}")
                if _says(event):
                    times.append(time.perf_counter() - began)
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if not times:
            times = [time.perf_counter() - began]  # an answer without a text
        return Timed(times, max(tokens, 1))


@dataclass(frozen=True)
class Timed:
    """An answer: the seconds at which pieces of it came, and its tokens."""

    times: Sequence[float]
    tokens: int


def _says(event: Mapping[str, Any]) -> bool:
    """Tell whether a chunk of a stream brings a piece of an answer, and not only its role or its end."""
    deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
    return any(each.get("content") or each.get("reasoning_content") or each.get("tool_calls") for each in deltas)


def figures(answers: Sequence[Timed], duration: float) -> Figures:
    """Sum up a load, as `vllm bench serve` does: medians over answers, of gaps over all of them."""
    gaps = [b - a for each in answers for a, b in zip(each.times, each.times[1:], strict=False)]
    outputs = [(each.times[-1] - each.times[0]) / (each.tokens - 1) for each in answers if each.tokens > 1]
    tokens = sum(each.tokens for each in answers)
    return {
        "completed": float(len(answers)),
        "duration": duration,
        "total_output_tokens": float(tokens),
        "output_throughput": tokens / duration,
        "median_ttft_ms": 1000 * median(each.times[0] for each in answers),
        "median_itl_ms": 1000 * median(gaps) if gaps else 0.0,
        "median_tpot_ms": 1000 * median(outputs) if outputs else 0.0,
        "median_e2el_ms": 1000 * median(each.times[-1] for each in answers),
    }


class VllmClient:
    """`vllm bench serve`, by its chat backend."""

    name = "`vllm bench serve`"

    def __init__(self, client: Client, base_url: str, key: str | None, tokenizer: str, folder: Path) -> None:
        self._client, self._url, self._key = client, base_url, key
        self._tokenizer, self._folder = tokenizer, folder

    def run(self, load: Load) -> Figures:
        file = self._folder / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in load.prompts), encoding="utf-8")
        found = self._client.send(self.args(load, file))
        if found["completed"] != len(load.prompts):
            failed = len(load.prompts) - found["completed"]
            raise Refused(f"{load.peer.name}: {failed:.0f} of {len(load.prompts)} requests failed.")
        return found

    def args(self, load: Load, file: Path) -> list[str]:
        """Return the arguments of `vllm bench serve`."""
        options = {
            "backend": "openai-chat",
            "endpoint": "/v1/chat/completions",
            "base-url": self._url.removesuffix("/v1"),
            "model": load.peer.model,
            "tokenizer": self._tokenizer,
            "dataset-name": "custom",
            "dataset-path": file,
            "custom-output-len": load.max_tokens,
            "num-prompts": len(load.prompts),
            "max-concurrency": load.concurrency,
            "temperature": load.temperature,
            "seed": load.seed,
            "ready-check-timeout-sec": 0,
            "percentile-metrics": "ttft,tpot,itl,e2el",
            "extra-body": json.dumps(load.fields),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        header = ["--header", f"Authorization=Bearer {self._key}"] if self._key else []
        return [*words, *header, "--skip-chat-template", "--disable-shuffle", "--disable-tqdm"]


def warm(loader: Loader, load: Load) -> None:
    """Send a short load before the first that counts: an engine that has been idle wakes slowly."""
    loader.run(replace(load, prompts=load.prompts[:1], max_tokens=min(load.max_tokens, 8)))
