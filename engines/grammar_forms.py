"""Write grammars as strings, as `Sampling.grammar` carries them between engines and processes: a JSON schema as it is,
other forms behind a prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from waver.engines.schema_check_worker import LARK, OPTIONS, REGEX


def regex(pattern: str) -> str:
    """Make the grammar of the texts that a regular expression matches as a whole."""
    return REGEX + pattern


def choice(choices: Sequence[str]) -> str:
    """Make the grammar of a few fixed texts."""
    return f"{LARK}start: {' | '.join(json.dumps(each, ensure_ascii=False) for each in dict.fromkeys(choices))}"


def lark(text: str) -> str:
    """Make a grammar of text in Lark's notation or in llama.cpp's (GBNF).

    Raises:
        ValueError: it is neither.
    """
    try:
        return LARK + any_to_lark(text)
    except GbnfToLarkError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None


def structural_tag(tag: Mapping[str, Any]) -> str:
    """Make the grammar of free text in which a trigger opens a part that follows a JSON schema.

    Args:
        tag: `triggers`, and `structures` with `begin`, `schema` and `end`, as vLLM's `structural_tag` has them.

    Raises:
        ValueError, TypeError, KeyError: it has not.
    """
    if not tag["structures"]:
        raise ValueError("no structures are given")
    tags = []
    for structure in tag["structures"]:
        begin, end = structure["begin"], structure["end"]
        trigger = next(each for each in [*tag["triggers"], None] if each is None or begin.startswith(each))
        if trigger is None:
            raise ValueError(f"no trigger opens {begin!r}")
        schema = structure["schema"]
        schema = {**(json.loads(schema) if isinstance(schema, str) else schema), "x-guidance": OPTIONS}
        tags.append(llguidance.StructTag(trigger=trigger, begin=begin, grammar=schema, end=end))
    return LARK + llguidance.StructTag.to_grammar(tags)
