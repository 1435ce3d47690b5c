# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain-openai==1.7.4", "langchain-tests==1.1.9"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""LangChain's standard tests of a chat model, with tools and structured output."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from harness import KEY, MODEL, V1, check, run
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestWaver(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"base_url": V1, "api_key": KEY, "model": MODEL}
        return {**where, "temperature": 0, "max_retries": 0, "max_tokens": 300, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True


class Outcomes:
    def __init__(self) -> None:
        self.passed, self.skipped, self.failed = list[str](), list[str](), list[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.split("::")[-1].removeprefix("test_")
        if report.failed:
            self.failed.append(name)
        elif report.skipped:
            (self.skipped if not hasattr(report, "wasxfail") else self.failed).append(name)
        elif report.when == "call":
            self.passed.append(name)


@check
def standard_tests() -> str:
    outcomes = Outcomes()
    apart = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--noconftest"]
    one_loop = [f"asyncio_{each}=session" for each in ("default_test_loop_scope", "default_fixture_loop_scope")]
    apart += [word for each in ("asyncio_mode=auto", *one_loop) for word in ("-o", each)]
    local = ["--disable-socket", "--allow-hosts=127.0.0.1"]
    pytest.main([*apart, *local, __file__], plugins=[outcomes])
    assert outcomes.passed, "no test ran"
    names = list(dict.fromkeys(name.split("[")[0] for name in outcomes.failed))
    said = f"{len(outcomes.passed)} passed, {len(outcomes.skipped)} do not apply, {len(outcomes.failed)} failed"
    assert not names, f"{said}: {', '.join(names)}"
    return said


if __name__ == "__main__":
    sys.modules["langchain_standard"] = sys.modules["__main__"]
    run()
