"""Check a configuration as far as it can be known without loading a model: `waver check`.

It stands on what a server checks when it starts, so that both say the same sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from waver.engines import EngineConfig, LoraConfig, TransformersConfig, UpstreamConfig, VllmConfig
from waver.resources import DEFAULT_CONFIG
from waver.server.config import Config, load_config
from waver.server.config_lines import Locator
from waver.server.preflight import address_problems, static_problems
from waver.server.problems import ConfigError, Problem

PREFIX = "WAVER_"


def check_config(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> tuple[Problem, ...]:
    """Return all that is wrong with a configuration, errors first, each with its file and line.

    Model folders, the port, secrets, policies, presets and what they refer to are checked; tokenizers are read where
    they lie on this machine. Nothing is fetched, and no other server is asked.
    """
    file = path if path is not None else DEFAULT_CONFIG
    try:
        config = load_config(file, flags)
    except ConfigError as error:
        return (*error.problems, *environment_problems())
    where = Locator(file, flags)
    found = [where.locate(problem) for problem in _problems(config)]
    return tuple(sorted(found, key=lambda problem: problem.level != "error"))


def _problems(config: Config) -> Iterator[Problem]:
    yield from static_problems(config)
    for problem in address_problems(config.server):
        # The server that has the port may be the one that this configuration is for.
        in_use = " is in use" in problem.message
        yield Problem(problem.message, problem.place, "warning") if in_use else problem
    yield from _folder_problems(config)
    yield from _pin_problems(config)
    yield from environment_problems()
    yield from _policy_problems(config)


def environment_problems() -> Iterator[Problem]:
    """Warn of variables that look like settings and are none: pydantic passes over those of an unknown section."""
    sections = {name.upper() for name in Config.model_fields}
    for name in sorted(os.environ):
        section, nested, _ = name.upper().removeprefix(PREFIX).partition("__")
        if name.upper().startswith(PREFIX) and nested and section not in sections:
            yield Problem(f"there is no section '{section.lower()}': the variable is not read.", (), "warning", name)


def _folder_problems(config: Config) -> Iterator[Problem]:
    folders: list[tuple[tuple[str, ...], Path]]
    folders = [(("state",), Path(config.state)), (("retrieval", "path"), config.retrieval.path)]
    if config.server.usage_file is not None:
        folders.append((("server", "usage_file"), Path(config.server.usage_file).expanduser().parent))
    for place, folder in folders:
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Problem(f"{'.'.join(place)}: {folder} cannot be written: {there} does not allow it.", place)


def _pin_problems(config: Config) -> Iterator[Problem]:
    from waver.server.keys import configured_keys
    from waver.server.preflight import stored_key_names

    try:
        known = {"*", *(key.name for key in configured_keys(config.server)), *stored_key_names(config)}
    except ValueError:
        return  # told already
    for name in config.pinned:
        if name not in known:
            message = f"pinned: no key is called '{name}', so this holds for no request."
            yield Problem(message, ("pinned", name), "warning")


def _policy_problems(config: Config) -> Iterator[Problem]:
    """Check policies, presets, and the artifacts that they use; this brings torch and transformers, in seconds."""
    from waver.engines import plugins
    from waver.engines.plugins import PluginError
    from waver.server.artifacts import artifact_problems
    from waver.server.message.parsers import parser_problems
    from waver.server.routing import DeclaredWriter, Router, policy_problems

    try:
        plugins.load(config.modules)
    except PluginError as error:
        yield Problem(str(error), ("modules",))
        return
    yield from artifact_problems(config)
    writers = {}
    for name, engine in config.engines.items():
        tokens, problem = _tokens(name, engine, config)
        if problem is not None:
            yield problem
        writers[name] = DeclaredWriter(tokens)
        for field, flaw in () if tokens is None else parser_problems(engine, tokens):
            yield Problem(f"engine '{name}': {flaw}", ("engines", name, field))
    found = list(policy_problems(config, writers, config.probes))
    yield from found
    if not found:
        try:
            Router(config, writers, config.probes)
        except ValueError as error:
            yield Problem(str(error), ("presets",))


def _tokens(name: str, engine: EngineConfig, config: Config) -> tuple[Any, Problem | None]:
    """Read an engine's tokenizer where it lies on this machine, with the chat template of the configuration."""
    from transformers import GenerationConfig

    from waver.engines.tokens import TokenText

    source = _tokenizer_folder(engine, config)
    if source is None:
        return None, None
    try:
        made = source / "generation_config.json"
        ends = GenerationConfig.from_pretrained(str(source)).eos_token_id if made.exists() else None
        tokens = TokenText.load(str(source), ends, local_files_only=True)
    except Exception as error:  # transformers and the tokenizers each raise their own kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return None, Problem(f"Engine '{name}': its tokenizer in {source} cannot be read: {said}", ("engines", name))
    if engine.chat_template is not None:
        try:
            template = Path(engine.chat_template).expanduser().read_text(encoding="utf-8")
            return tokens.with_template(template), None
        except OSError:
            return tokens, None  # told already
        except ValueError as error:
            message = f"engine {name!r}: chat_template {engine.chat_template!r}: {error}"
            return tokens, Problem(message, ("engines", name, "chat_template"))
    return tokens, None


def _tokenizer_folder(engine: EngineConfig, config: Config) -> Path | None:
    match engine:
        case UpstreamConfig():
            source = engine.tokenizer or engine.model
        case LoraConfig():
            base = config.engines[engine.base]
            return _tokenizer_folder(base, config)
        case VllmConfig():
            source = str(engine.args.get("tokenizer") or engine.model)
        case TransformersConfig():
            source = engine.model
    folder = Path(source).expanduser()
    return folder if (folder / "config.json").exists() or (folder / "tokenizer_config.json").exists() else None
