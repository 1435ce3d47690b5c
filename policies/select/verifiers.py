"""Verifiers of the configuration: what says which goals an answer meets, where no template or pattern can.

    verifiers:
      programs: {kind: python, file: tests.jsonl}
      mine: {kind: function, name: mine}
      beside: {kind: http, url: "http://127.0.0.1:9000/verify"}

`python` runs the code in an answer against the tests of its question (`waver.python_tests`). `function` is an entry
point of an installed package in the group `waver.verifiers`, called with question and text. `http` posts both to a
server on this machine. Function and server return a number from 0 to 1, or an object
`{"solved": 1, "goals": {"compiles": 1, "is short": 0}, "wrong": false}`; `solved` may be left out where goals are
there, and all of them are meant then. The goals of a question are those that its empty answer gets.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from waver import python_tests
from waver.goals import MET, Goal, NotJudged, Task, Verdict, flat

GROUP = "waver.verifiers"
"""Entry points of functions that verify."""
AT_ONCE = 4
"""Texts that one function or server judges at a time."""
SECONDS = Field(default=10.0, gt=0.0, le=600.0, description="most seconds of one text")
LARGEST = 1_000_000
"""Bytes of a server's answer."""
SHOWN = 200

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Function = Callable[[str, str], Any]
"""From a question and a text to what `Outcome.of` reads."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PythonVerifier(_Config):
    """Python tests. `file` has a line of JSON for each question: `question`, and `tests`, a list of snippets that raise
    nothing behind right code. HumanEval's own fields (`prompt`, `test`, `entry_point`) are read as well."""

    kind: Literal["python"]
    file: str = Field(description="lines of JSON with questions and tests")
    seconds: float = Field(default=5.0, gt=0.0, le=600.0, description="processor time of one answer")
    memory_mib: int = Field(default=512, ge=64, description="address space of one answer")


class FunctionVerifier(_Config):
    """A function of an installed package: `name` of an entry point in the group `waver.verifiers`."""

    kind: Literal["function"]
    name: str = Field(description="of the entry point")
    seconds: float = SECONDS


class HttpVerifier(_Config):
    """A server on this machine, which is posted `{"question": "…", "text": "…"}`."""

    kind: Literal["http"]
    url: str = Field(description="on this machine, as `http://127.0.0.1:9000/verify`")
    seconds: float = SECONDS

    @field_validator("url")
    @classmethod
    def _here(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.username is not None or not _loopback(parts.hostname or ""):
            raise ValueError("a verifier is reached on this machine only, as http://127.0.0.1:9000/verify")
        return url


VerifierConfig = Annotated[PythonVerifier | FunctionVerifier | HttpVerifier, Field(discriminator="kind")]


class Verifier(Protocol):
    """A verifier: makes the task of a question."""

    async def task(self, question: str) -> Task:
        """Return the goals of a question.

        Raises:
            ValueError: it knows nothing of this question. NotJudged: it fails.
        """


class Outcome(BaseModel):
    """Answer of a function or a server about a text: how far it is right, and how far it meets each goal."""

    model_config = ConfigDict(extra="forbid")

    solved: Share | None = None
    goals: dict[Annotated[str, Field(max_length=SHOWN)], Share] = Field(default={}, max_length=256)
    wrong: bool = False

    @classmethod
    def of(cls, found: Any) -> Outcome:
        """Read a number or an object.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(found, bool | int | float):
            return cls(solved=float(found))
        made = cls.model_validate(found)
        if made.solved is None and not made.goals:
            raise ValueError("neither `solved` nor `goals` is there")
        return made

    def verdict(self, names: tuple[str, ...]) -> Verdict:
        """Put the values of goals in order; a goal that is not told of is not met."""
        values = tuple(self.goals.get(name, 0.0) for name in names)
        solved = self.solved if self.solved is not None else float(all(each >= MET for each in values))
        return Verdict((solved, *values), self.wrong)


class Called:
    """A verifier that asks a function or a server of every text."""

    def __init__(self, name: str, ask: Callable[[str, str], Any], seconds: float) -> None:
        self._name, self._ask, self._seconds = name, ask, seconds
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def task(self, question: str) -> Task:
        names = tuple((await self._outcome(question, "")).goals)

        async def judge(text: str) -> Verdict:
            return (await self._outcome(question, text)).verdict(names)

        return flat(names, judge) if names else Task(Goal(0), ("all",), judge)

    async def _outcome(self, question: str, text: str) -> Outcome:
        async with self._turn:
            try:
                async with asyncio.timeout(self._seconds):
                    return Outcome.of(await self._ask(question, text))
            except TimeoutError:
                raise NotJudged(f"the verifier {self._name!r} took more than {self._seconds:g} s") from None
            except ValidationError as error:
                said = str(error.errors(include_url=False)[0]["msg"])
                raise NotJudged(f"the verifier {self._name!r} answers in another form", said) from error
            except Exception as error:  # a user's code may raise anything
                raise NotJudged(
                    f"the verifier {self._name!r} failed", f"{type(error).__name__}: {error}"[:SHOWN]
                ) from error


class Programs:
    """Python tests by question; a request may say more than the question, such as how to answer."""

    def __init__(self, tests: Mapping[str, tuple[str, ...]], limits: python_tests.Limits) -> None:
        self._tests, self._runner = tests, python_tests.Runner(limits)

    async def task(self, question: str) -> Task:
        asked = _plain(question)
        known = max((each for each in self._tests if each in asked), key=len, default=None)
        if known is None:
            raise ValueError("there are no tests for this question")
        tests = self._tests[known]

        async def judge(text: str) -> Verdict:
            code = python_tests.code_of(text)
            passed = await self._runner.run(code, tests) if code.strip() else [False] * len(tests)
            return Verdict((float(all(passed)), *map(float, passed)))

        return flat([each.strip()[:SHOWN] for each in tests], judge)


def load(name: str, config: VerifierConfig) -> Verifier:
    """Make a verifier of its configuration; reads its file, or imports its function.

    Raises:
        ValueError: the file or the function is not there, or not as it should be.
    """
    if isinstance(config, PythonVerifier):
        return Programs(read_tests(Path(config.file)), python_tests.Limits(config.seconds, config.memory_mib))
    if isinstance(config, FunctionVerifier):
        return Called(name, in_threads(_installed(config.name)), config.seconds)
    return Called(name, over_http(config), config.seconds)


def read_tests(file: Path) -> dict[str, tuple[str, ...]]:
    """Read tests by question.

    Raises:
        ValueError: the file cannot be read, or a line has no question with tests.
    """
    found = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        own = row if isinstance(row, dict) else {}
        question, tests = own.get("question", own.get("prompt")), own.get("tests")
        if tests is None and isinstance(own.get("test"), str) and isinstance(own.get("entry_point"), str):
            tests = [f"{own['test']}\n\ncheck({own['entry_point']})"]
        if not isinstance(question, str) or not isinstance(tests, list) or not tests:
            raise ValueError(f"{file}, line {place}: an object with `question` and `tests`, a list, is wanted")
        found[_plain(question)] = tuple(map(str, tests))
    return found


def in_threads(function: Function) -> Callable[[str, str], Any]:
    """Call a function in threads of its own, so that one that hangs takes none from others."""
    threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="verifier")

    async def ask(question: str, text: str) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, function, question, text)

    return ask


def over_http(config: HttpVerifier) -> Callable[[str, str], Any]:
    """Post questions and texts to a server."""

    async def ask(question: str, text: str) -> Any:
        async with (
            httpx.AsyncClient(timeout=config.seconds, trust_env=False) as http,
            http.stream("POST", config.url, json={"question": question, "text": text}) as response,
        ):
            response.raise_for_status()
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LARGEST:
                    raise ValueError(f"its answer has more than {LARGEST} bytes")
            return json.loads(body)

    return ask


def _installed(name: str) -> Function:
    """Find a function among the entry points.

    Raises:
        ValueError: it is not there, or cannot be imported.
    """
    there = {each.name: each for each in entry_points(group=GROUP)}
    if name not in there:
        shown = ", ".join(sorted(there)) or "none"
        raise ValueError(f"no installed package has the entry point {name!r} in the group {GROUP}; there are {shown}")
    try:
        function = there[name].load()
    except Exception as error:
        raise ValueError(f"the entry point {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"the entry point {name!r} is no function")
    found: Function = function
    return found


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(question: str) -> str:
    return " ".join(question.split())
