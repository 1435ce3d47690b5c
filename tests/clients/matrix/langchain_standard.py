# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain-openai==1.7.4", "langchain-tests==1.1.9"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""LangChain's standard tests of a chat model, with tools and structured output; each is a part of one check."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from harness import KEY, MODEL, V1, check, part, run
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

MOST = 120
"""Tokens of an answer: more than any call or object that the tests ask for needs."""


class TestWaver(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"base_url": V1, "api_key": KEY, "model": MODEL}
        return {**where, "temperature": 0, "max_retries": 0, "max_tokens": MOST, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True


class Outcomes:
    """Collect what each test, or each of its parameters, came to: an empty text where it passed."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self.skipped = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.split("::")[-1].removeprefix("test_")
        if report.failed or hasattr(report, "wasxfail"):
            told = getattr(report.longrepr, "reprcrash", None)
            self.of[name] = (told.message if told else str(report.longrepr)).split("\n")[0][:200] or "failed"
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.of[name] = ""


@check
def standard_tests() -> str:
    outcomes = Outcomes()
    apart = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--noconftest"]
    one_loop = [f"asyncio_{each}=session" for each in ("default_test_loop_scope", "default_fixture_loop_scope")]
    apart += [word for each in ("asyncio_mode=auto", *one_loop) for word in ("-o", each)]
    local = ["--disable-socket", "--allow-hosts=127.0.0.1"]
    pytest.main([*apart, *local, __file__], plugins=[outcomes])
    assert outcomes.of, "no test ran"
    for name, failed in outcomes.of.items():
        part(name, failed)
    names = [name for name, failed in outcomes.of.items() if failed]
    said = f"{len(outcomes.of) - len(names)} passed, {outcomes.skipped} do not apply, {len(names)} failed"
    assert not names, said
    return said


if __name__ == "__main__":
    sys.modules["langchain_standard"] = sys.modules["__main__"]
    run()
