"""Read a server's configuration again while it runs, and take over what is safe to change: presets, limits and keys.

Everything is checked before anything changes, and the change itself is one step of the event loop: a configuration that
cannot be taken over as a whole changes nothing. Answers that have begun end under the one that they began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from waver.server.preflight import static_problems
from waver.server.problems import ConfigError, Problem

if TYPE_CHECKING:
    from waver.server.config import Config
    from waver.server.runtime import Runtime

log = structlog.get_logger("waver")

LIVE = frozenset({"presets", "default_preset", "policies", "pinned"})
"""Sections that may change while a server runs."""
LIVE_SERVER = frozenset(
    {
        "default_max_tokens",
        "keepalive",
        "max_answer_entries",
        "max_choices",
        "max_concurrency",
        "max_extra_sequences",
        "max_extra_tokens",
        "max_n",
        "max_queue",
        "max_text_characters",
        "strict",
        "timeout",
    }
)
"""And options of the section `server`."""


def differences(before: Config, after: Config) -> list[str]:
    """Return the names of the options that differ, as `server.timeout` or `presets.frugal`."""
    return sorted(_differ(before.model_dump(mode="json"), after.model_dump(mode="json")))


def _differ(before: Mapping[str, Any], after: Mapping[str, Any], depth: int = 2) -> Iterator[str]:
    for name in before.keys() | after.keys():
        one, other = before.get(name), after.get(name)
        if one == other and (name in before) == (name in after):
            continue
        if depth > 1 and isinstance(one, dict) and isinstance(other, dict):
            yield from (f"{name}.{inner}" for inner in _differ(one, other, depth - 1))
        else:
            yield name


def is_live(option: str) -> bool:
    """Return whether an option may change while a server runs."""
    section, _, rest = option.partition(".")
    return section in LIVE or (section == "server" and rest in LIVE_SERVER)


async def reload(here: Runtime) -> list[str]:
    """Read the configuration again and take it over; return the names of the options that have changed.

    Raises:
        ConfigError: it cannot be read, is wrong, or changes what only a new start can; then nothing has changed. Its
            message is for the operator.
    """
    try:
        async with here.reloading:
            changed = await _take_over(here)
    except ConfigError as error:
        here.metrics.reloads.labels("refused").inc()
        log.error("the configuration is not reloaded", reason=str(error))
        raise
    here.metrics.reloads.labels("done").inc()
    log.info("the configuration is reloaded", changed=changed)
    return changed


async def _take_over(here: Runtime) -> list[str]:
    if not here.loaded:
        raise ConfigError([Problem("The engines are still starting: reload the configuration once they are ready.")])
    after, problems = await asyncio.to_thread(_read, here.config)
    changed = differences(here.config, after)
    if fixed := [option for option in changed if not is_live(option)]:
        why = "changes only with a new start of the server; nothing was changed."
        raise ConfigError(Problem(f"{option} {why}", tuple(option.split(".", 1))) for option in fixed)
    if problems:
        raise ConfigError(problems)
    router = await asyncio.to_thread(here.make_router, after)
    here.take_over(after, router)
    return changed


def _read(before: Config) -> tuple[Config, list[Problem]]:
    after = before.read_again()
    return after, [problem for problem in static_problems(after) if problem.level == "error"]
