"""Load what a configuration names besides models: probes, judges, routers, calibrations, tasks, thresholds, guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from waver.engines.judge import Judge
from waver.engines.probe import Probe
from waver.engines.router import Router
from waver.policies.ask.task import AskTask, ready_tasks
from waver.policies.ask.thresholds import Thresholds
from waver.policies.guard.memory import Guard
from waver.policies.uncertainty.calibration import Calibration
from waver.resources import STARTER_GUARD
from waver.server.config import Config
from waver.server.problems import Problem

Loaded = TypeVar("Loaded")
LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "probes": ("probe", Probe.load),
    "judges": ("judge", Judge.load),
    "routers": ("router", Router.load),
    "calibrations": ("calibration", Calibration.load),
    "tasks": ("task", AskTask.load),
    "thresholds": ("thresholds", Thresholds.load),
    "guards": ("guard", Guard.load),
}
"""For each section of the configuration: the word for one of its entries, and what loads it."""


def load_section(config: Config, section: str) -> dict[str, Any]:
    """Load the entries of a section, and those that come with Waver (blocking).

    Raises:
        ValueError: one of them cannot be read.
    """
    return {name: load_entry(section, name, folder) for name, folder in _folders(config, section).items()}


def artifact_problems(config: Config) -> Iterator[Problem]:
    """Load everything once, to find what cannot be read; what is not there at all is left to the preflight."""
    for section in LOADERS:
        for name, folder in _folders(config, section).items():
            if Path(folder).exists():
                try:
                    load_entry(section, name, folder)
                except ValueError as error:
                    yield Problem(str(error), (section, name))


def _folders(config: Config, section: str) -> dict[str, str]:
    shipped = {
        "tasks": {name: str(file) for name, file in ready_tasks().items()},
        "guards": {"starter": str(STARTER_GUARD)},
    }
    return {**shipped.get(section, {}), **getattr(config, section)}


def load_entry(section: str, name: str, folder: str) -> Any:
    """Load one entry of a section.

    Raises:
        ValueError: it cannot be read.
    """
    kind, load = LOADERS[section]
    return named(kind, name, partial(load, Path(folder)))


def named(kind: str, name: str, load: Callable[[], Loaded]) -> Loaded:
    """Load something, whose name is said where it cannot be read.

    Raises:
        ValueError: it cannot.
    """
    try:
        return load()
    except ValueError as error:
        raise ValueError(f"{kind} '{name}': {error}") from error
