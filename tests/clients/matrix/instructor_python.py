# /// script
# requires-python = ">=3.11"
# dependencies = ["instructor==1.17.0", "openai"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""instructor, in the modes that people use: tools and JSON schema."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
from harness import KEY, MODEL, QUESTION, V1, check, run
from pydantic import BaseModel

plain = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)


class Place(BaseModel):
    """The city that is asked about."""

    city: Literal["Rome", "Oslo"]


def ask(mode: instructor.Mode) -> None:
    client = instructor.from_openai(plain, mode=mode)
    messages = [{"role": "user", "content": QUESTION}]
    made = client.chat.completions.create(
        model=MODEL, messages=messages, response_model=Place, max_retries=0, max_tokens=100  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(made, Place)


@check
def tools() -> None:
    ask(instructor.Mode.TOOLS)


@check
def structured() -> None:
    ask(instructor.Mode.JSON_SCHEMA)


@check
def stream() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    messages = [{"role": "user", "content": QUESTION}]
    pieces = list(client.chat.completions.create_partial(model=MODEL, messages=messages, response_model=Place))  # type: ignore[arg-type]
    assert pieces[-1].city in ("Rome", "Oslo")


if __name__ == "__main__":
    run()
