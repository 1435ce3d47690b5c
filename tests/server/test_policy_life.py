"""A policy's life on a real server: `after` runs once however an answer ends, and what a job carries reaches it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.conftest import until
from waver.server.logs import configure_logs

HELLO = [{"role": "user", "content": "hello"}]
KEY = "sk-life"
MODULE = '''
"""Policies that watch, refuse, keep and say."""

from contextlib import aclosing
from typing import ClassVar, Literal

from pydantic import Field

from waver.engines.base import EngineError, Unsupported
from waver.policies.base import Policy
from waver.policies.helpers import ask, run_sub_job, say

SEEN = []


class Watch(Policy):
    """Write down what came of an answer."""

    stage: ClassVar = "admit"
    name: Literal["watch"] = "watch"
    fail: bool = Field(default=False, description="fail after the answer")
    refuse: bool = Field(default=False, description="refuse the request")
    withhold: bool = Field(default=False, description="withhold the answer after two tokens")
    text: str | None = Field(default=None, description="what is said instead of an answer")
    die: bool = Field(default=False, description="let the engine die after two tokens")
    note: str | None = Field(default=None, description="what is kept for the caller")

    async def check(self, job):
        if self.refuse:
            raise Unsupported("not today", "refuse")

    async def decode(self, job, proceed):
        if self.text is not None:
            async for step in say(job, self.text, "content_filter", self.name):
                yield step
            return
        made = 0
        async with aclosing(proceed(job)) as steps:
            async for step in steps:
                yield step
                made += 1
                if made == 2 and self.withhold:
                    async for last in say(job, "", "content_filter", self.name):
                        yield last
                    return
                if made == 2 and self.die:
                    raise EngineError("the engine died")

    async def after(self, job, answer):
        SEEN.append((job, answer))
        if self.note is not None:
            await job.services.stores.open("notes", job.caller.owner).put("note", self.note)
        if self.fail:
            raise RuntimeError(f"secret: {answer.text} {job.caller.user}")


class Afterthought(Policy):
    """Ask after the answer."""

    stage: ClassVar = "admit"
    name: Literal["afterthought"] = "afterthought"

    def decode(self, job, proceed):
        return proceed(job)

    async def after(self, job, answer):
        await ask(job, [{"role": "user", "content": "hello"}], 5, ignore_eos=True)


class Aside(Policy):
    """Ask beside the answer."""

    stage: ClassVar = "prompt"
    name: Literal["aside"] = "aside"

    async def decode(self, job, proceed):
        text = await ask(job, [{"role": "user", "content": "hello"}], 5, ignore_eos=True)
        other = await run_sub_job(job, proceed)
        job.report.discarded += other.spent
        job.report.extra["aside"] = {"text": text, "other": len(other.steps)}
        async with aclosing(proceed(job)) as steps:
            async for step in steps:
                yield step
'''


@pytest.fixture(scope="module")
def watched(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "life_policies.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("WAVER_MODULES", "[]")
        patch.delenv("WAVER_MODULES")  # the server sets it, and the end of this context takes it away
        patch.setenv("WAVER_LIFE_KEYS", f"alice:{KEY},sk-nameless")
        extra = {"modules": ["life_policies"], "state": str(folder / "state")}
        yield start(config=extra, api_keys_env="WAVER_LIFE_KEYS")


@pytest.fixture
def seen(watched: Any) -> list[Any]:
    found: list[Any] = sys.modules["life_policies"].SEEN
    found.clear()
    return found


def sdk(watched: Any) -> openai.OpenAI:
    made: openai.OpenAI = watched.openai(api_key=KEY)
    return made


def ask(watched: Any, policy: dict[str, Any] | None = None, **more: Any) -> Any:
    with sdk(watched) as client:
        body = {"policy": [{"name": "watch", **(policy or {})}], "ignore_eos": True} | more.pop("extra_body", {})
        options = {"model": "small", "messages": HELLO, "max_tokens": 8, "seed": 3, **more}
        answer = client.chat.completions.create(**options, extra_body=body)
        return list(answer) if more.get("stream") else answer  # read before the client is closed


def once(seen: list[Any], ending: str) -> Any:
    """The one call of `after`; another would come within its time."""
    until(lambda: bool(seen), "the end of the answer")
    asyncio.run(asyncio.sleep(0.1))
    assert [answer.ending for _, answer in seen] == [ending]
    return seen[0]


def test_finished(watched: Any, seen: list[Any]) -> None:
    ends = {"ignore_eos": False, "stop_token_ids": list(range(128))}
    whole = ask(watched, max_tokens=900, temperature=2, extra_body=ends)
    assert whole.choices[0].finish_reason == "stop"
    _, answer = once(seen, "stop")
    assert answer.text == whole.choices[0].message.content


def test_length_and_what_the_job_carries(watched: Any, seen: list[Any]) -> None:
    said = [{"role": "system", "content": "Be brief."}, *HELLO]
    whole = ask(watched, messages=said, user="bob", n=1)
    job, answer = once(seen, "length")
    assert answer.text == whole.choices[0].message.content
    assert len(answer.token_ids) == 8 == job.report.completion_tokens
    assert (job.caller.key, job.caller.user, job.caller.owner) == ("alice", "bob", "alice/bob")
    assert "alice" not in repr(job.caller)
    assert "bob" not in repr(job)
    assert [dict(message) for message in job.messages] == said


def test_stop_string(watched: Any, seen: list[Any]) -> None:
    first = ask(watched).choices[0].message.content
    until(lambda: bool(seen), "the end of the answer")
    seen.clear()
    cut = ask(watched, stop=[first[2:4]])
    assert cut.choices[0].finish_reason == "stop"
    _, answer = once(seen, "stop_string")
    assert answer.text == cut.choices[0].message.content


def test_client_gone(watched: Any, seen: list[Any]) -> None:
    with watched.http(headers={"authorization": f"Bearer {KEY}"}) as http:
        body = {"messages": HELLO, "model": "small", "stream": True, "max_tokens": 900, "ignore_eos": True}
        with http.stream("POST", "/v1/chat/completions", json=body | {"policy": [{"name": "watch"}]}) as response:
            lines = response.iter_lines()
            while "content" not in next(lines):
                pass
    assert watched.idle(within=30)
    _, answer = once(seen, "client_gone")
    assert 0 < len(answer.token_ids) < 900


def test_engine_death(watched: Any, seen: list[Any]) -> None:
    with pytest.raises(openai.InternalServerError):
        ask(watched, {"die": True})
    _, answer = once(seen, "failed")
    assert len(answer.token_ids) == 2


def test_refusal(watched: Any, seen: list[Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="not today"):
        ask(watched, {"refuse": True})
    _, answer = once(seen, "refused")
    assert (answer.text, answer.token_ids) == ("", ())


@pytest.mark.parametrize("stream", [False, True])
def test_content_filter_in_chat(watched: Any, seen: list[Any], stream: bool) -> None:
    said = ask(watched, {"text": "I cannot help with that."}, stream=stream, max_tokens=50)
    if stream:
        chunks = said
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        last = chunks[-1]
    else:
        text, last = said.choices[0].message.content, said
    assert text == "I cannot help with that."
    assert last.choices[0].finish_reason == "content_filter"
    assert last.waver["content_filter"] == {"policy": "watch"}
    assert last.waver["entropy"]["mean"] == 0
    once(seen, "content_filter")


def test_content_filter_in_the_middle_of_a_text(watched: Any, seen: list[Any]) -> None:
    with sdk(watched) as client:
        done = client.completions.create(
            model="small", prompt="hello", max_tokens=9, extra_body={"policy": [{"name": "watch", "withhold": True}]}
        )
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("content_filter", 2)  # type: ignore[union-attr]
    _, answer = once(seen, "content_filter")
    assert answer.text == done.choices[0].text


def test_a_failure_is_logged_without_words_of_the_caller(
    watched: Any, seen: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form="json")
    assert ask(watched, {"fail": True}, user="bob").choices[0].finish_reason == "length"
    once(seen, "length")
    until(lambda: not watched.runtime.after_hooks._tasks, "the work after the answer")
    out = "".join(capfd.readouterr())
    (line,) = [each for each in out.splitlines() if "a policy failed after an answer" in each]
    assert "watch" in line
    assert "RuntimeError at life_policies:" in line
    assert "bob" not in out
    assert "secret" not in out
    assert "alice" not in line, "the key's name stands in the line of the request alone"


def test_each_choice_ends_once(watched: Any, seen: list[Any]) -> None:
    ask(watched, n=3)
    until(lambda: len(seen) >= 3, "the end of all answers")
    asyncio.run(asyncio.sleep(0.1))
    assert sorted(answer.ending for _, answer in seen) == ["length"] * 3


def test_work_after_an_answer_is_charged_to_its_key(watched: Any, seen: list[Any]) -> None:
    def after() -> float:
        labels = {"key": "alice", "kind": "background"}
        return watched.runtime.metrics.registry.get_sample_value("waver_key_tokens_total", labels) or 0.0

    assert after() == 0
    with sdk(watched) as client:
        chat = [{"role": "user", "content": "hello"}]
        client.chat.completions.create(
            model="small", messages=chat, max_tokens=2, extra_body={"policy": [{"name": "afterthought"}]}
        )
        prompt = client.chat.completions.create(model="small", messages=chat, max_tokens=1).usage.prompt_tokens  # type: ignore[union-attr]
    until(lambda: after() > 0, "the charge")
    assert after() == prompt - 1 + 5


def test_what_is_kept_belongs_to_its_owner(watched: Any, seen: list[Any]) -> None:
    ask(watched, {"note": "for bob"}, user="bob")
    until(lambda: not watched.runtime.after_hooks._tasks and bool(seen), "the note")
    stores = watched.runtime.stores
    assert watched.run(stores.open("notes", "alice/bob").get("note")) == "for bob"
    assert watched.run(stores.open("notes", "alice/eve").get("note")) is None


def test_a_key_without_a_name_has_one(watched: Any, seen: list[Any]) -> None:
    with watched.openai(api_key="sk-nameless") as client:
        client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=1, extra_body={"policy": [{"name": "watch"}]}
        )
    until(lambda: bool(seen), "the end of the answer")
    assert seen[0][0].caller.key.startswith("key-")
    with pytest.raises(openai.AuthenticationError):
        watched.openai(api_key=f"alice:{KEY}").models.list()


def test_asking_beside_the_answer_is_counted(watched: Any) -> None:
    with sdk(watched) as client:
        done = client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=4, extra_body={"policy": [{"name": "aside"}], "ignore_eos": True}
        )
    report = done.waver  # type: ignore[attr-defined]
    assert report["discarded_tokens"] == 5 + 4
    assert report["tokens"] == {"small": 4}
    assert report["aside"]["other"] == 4
