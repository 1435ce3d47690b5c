"""Find what would keep a server from starting, before the libraries and the models are loaded.

Imports nothing heavy: what is wrong with a port, a folder or an installation is said within a second.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from waver.engines import LoraConfig, TransformersConfig, UpstreamConfig, VllmConfig
from waver.engines.config import EngineConfig
from waver.engines.vllm.unsupported import refuse_adapter
from waver.extras import how_to_install, how_to_install_vllm
from waver.secret import read_secret
from waver.server.config import FOLDERS, Config
from waver.server.keys import configured_keys
from waver.server.problems import ConfigError, Problem
from waver.server.settings import ServerConfig

KEPT_HERE = frozenset({"simplemem", "memgas", "scr"})
"""Policies that remember, in files of this machine."""
RETRIEVAL = {"faiss": "retrieval", "sentence_transformers": "retrieval"}
"""Modules that lookups need, and the extra that brings each."""


def check_start(config: Config) -> None:
    """Check that the address is free and not open to all, that model folders are there, and packages installed.

    Raises:
        ConfigError: something is not; the message has a sentence for each, for the user.
    """
    found = (*static_problems(config), *address_problems(config.server))
    if errors := [problem for problem in found if problem.level == "error"]:
        raise ConfigError(errors)


def static_problems(config: Config) -> Iterator[Problem]:
    """Find what keeps a configuration from being served, whether or not a server runs on this machine now."""
    yield from _secret_problems(config)
    try:
        stored = bool(stored_key_names(config))
    except ValueError as error:
        yield Problem(f"keys.database: {error}", ("keys", "database"))
        stored = True
    yield from exposure_problems(config.server, stored)
    yield from _shared_problems(config)
    for name, engine in config.engines.items():
        yield from _engine_problems(name, engine)
    yield from _retrieval_problems(config)
    for section in FOLDERS:
        for name, folder in getattr(config, section).items():
            if not Path(folder).expanduser().exists():
                yield Problem(f"{section}: '{name}': there is nothing at {folder}.", (section, name))


def _secret_problems(config: Config) -> Iterator[Problem]:
    server, retrieval = config.server, config.retrieval
    try:
        configured_keys(server)
    except ValueError as error:
        yield Problem(f"server.api_keys_file: {error}", ("server", "api_keys_file"))
    try:
        read_secret(None, retrieval.api_key_file)
    except ValueError as error:
        yield Problem(f"retrieval.api_key_file: {error}", ("retrieval", "api_key_file"))
    named: list[tuple[tuple[str, ...], str | None]] = [
        (("server", "api_keys_file"), server.api_keys_file),
        (("retrieval", "api_key_file"), retrieval.api_key_file),
    ]
    for name, engine in config.engines.items():
        if isinstance(engine, UpstreamConfig):
            try:
                engine.key()
            except ValueError as error:
                field = "api_key_env" if engine.api_key_file is None else "api_key_file"
                yield Problem(f"Engine '{name}': {error}", ("engines", name, field))
            named.append((("engines", name, "api_key_file"), engine.api_key_file))
    for place, file in named:
        if file is not None and _read_by_all(Path(file).expanduser()):
            message = f"{'.'.join(place)}: everybody on this machine can read {file}: chmod 600."
            yield Problem(message, place, "warning")


def _shared_problems(config: Config) -> Iterator[Problem]:
    """Warn of policies that remember, where other machines seem to share the keys: what they keep stays here."""
    if not (config.keys.database or "").startswith("postgres"):
        return
    lists = {("presets", name): each for name, each in config.presets.items()}
    lists |= {("pinned", name): each for name, each in config.pinned.items()}
    for place, policies in lists.items():
        if names := sorted({str(each.get("name")) for each in policies} & KEPT_HERE):
            message = (
                f"{'.'.join(place)}: what {' and '.join(names)} keeps lies in `state` on this machine; servers on "
                "others that share keys.database do not see it. Send each user to one server (docs/deploy.md)."
            )
            yield Problem(message, place, "warning")


def stored_key_names(config: Config) -> set[str]:
    """Return the names of the keys in the database, also of those that have ended.

    Raises:
        ValueError: it cannot be read.
    """
    if config.keys.database is None and not (Path(config.state) / "keys.sqlite3").exists():
        return set()
    from waver.server.tenants.database import Database
    from waver.server.tenants.stored_keys import StoredKeys

    database = Database(config.keys.database, Path(config.state))
    try:
        return {key.name for key in StoredKeys(database).all()}
    finally:
        database.close()


def _read_by_all(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & stat.S_IROTH) and not file.is_relative_to("/run/secrets")
    except OSError:
        return False


def exposure_problems(server: ServerConfig, stored_keys: bool = False) -> Iterator[Problem]:
    """Refuse an address that others can reach where there are no keys."""
    try:
        local = ipaddress.ip_address(server.host).is_loopback
    except ValueError:
        local = server.host == "localhost"
    if local or stored_keys or server.allow_no_keys or server.api_keys_file is not None or configured_keys(server):
        return
    yield Problem(
        f"{server.host} can be reached from other machines: add a key with `waver keys add`, put API "
        f"keys into {server.api_keys_env} (separated by commas), or say that none are wanted with --allow-no-keys.",
        ("server", "host"),
    )


def _engine_problems(name: str, engine: EngineConfig) -> Iterator[Problem]:
    if isinstance(engine, LoraConfig):
        try:
            refuse_adapter(name, engine.model)
        except ValueError as error:
            yield Problem(str(error), ("engines", name, "model"))
    adapter = engine.adapter if isinstance(engine, TransformersConfig) else None
    if adapter is not None and not (Path(adapter).expanduser() / "adapter_config.json").exists():
        message = f"Engine '{name}': {adapter} is no adapter: it has no adapter_config.json."
        yield Problem(message, ("engines", name, "adapter"))
    if isinstance(engine, VllmConfig | LoraConfig) and find_spec("vllm") is None:
        message = f"Engine '{name}' needs vLLM, which is not installed: {how_to_install_vllm()}"
        yield Problem(message, ("engines", name, "backend"))
    for field in ("chat_template", "ca_file"):
        file = getattr(engine, field, None)
        if file is not None and not os.access(Path(file).expanduser(), os.R_OK):
            yield Problem(f"Engine '{name}': {field}: {file} cannot be read.", ("engines", name, field))
    if isinstance(engine, UpstreamConfig):
        return
    folder, place = Path(engine.model).expanduser(), ("engines", name, "model")
    if not folder.exists():
        # `name` and `owner/name` may be a hub's; whoever loads it says whether it is.
        if not may_be_hub_id(engine.model):
            yield Problem(f"Engine '{name}': there is no model at {engine.model}.", place)
        else:
            message = f"Engine '{name}': {no_folder(engine.model)}; it will be looked for on a hub."
            yield Problem(message, place, "warning")
    elif isinstance(engine, TransformersConfig) and not (folder / "config.json").exists():
        yield Problem(f"Engine '{name}': {engine.model} is no model: it has no config.json.", place)


def may_be_hub_id(model: str) -> bool:
    """Return whether a name that is no folder can be that of a model at a hub: `name` or `owner/name`."""
    return not model.startswith(("/", ".", "~")) and model.count("/") <= 1


def no_folder(model: str) -> str:
    """Say that a name that may be a hub's is no folder here, and that it is likely misspelt if its parent is one."""
    said, parent = f"there is no folder {model} here", Path(model).parent
    return f"{said} (but {parent}/, so it is likely misspelt)" if parent.name and parent.is_dir() else said


def _retrieval_problems(config: Config) -> Iterator[Problem]:
    """Check that the packages of retrieval are installed, if a preset, the store or a named embedder needs them."""
    looks_up = any("collection" in policy for preset in config.presets.values() for policy in preset)
    # A named embedder is loaded at the start.
    named = not config.retrieval.model_fields_set.isdisjoint({"embedder", "embedders"})
    wanted = RETRIEVAL if looks_up or named else {}
    if config.retrieval.store == "qdrant":
        wanted = {**RETRIEVAL, "qdrant_client": "qdrant"}
    for module, extra in wanted.items():
        if find_spec(module) is None:
            message = f"The configuration looks things up, which needs {module}: {how_to_install(extra)}"
            yield Problem(message, ("retrieval",))
            break
    for field in ("embedder", "embedders", "rerankers") if named or config.retrieval.rerankers else ():
        value = getattr(config.retrieval, field)
        for model in (value,) if isinstance(value, str) else value:
            if not Path(model).expanduser().exists() and not may_be_hub_id(model):
                yield Problem(f"retrieval.{field}: there is no model at {model}.", ("retrieval", field))


def address_problems(server: ServerConfig) -> Iterator[Problem]:
    """Try to listen on the configured address, and stop at once."""
    if server.port == 0:
        return
    place = "port"
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                # As the server does it: what a closed connection has left behind is no hindrance.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {server.port} is in use; choose another with --port, or 0 for a free one."
        elif error.errno == errno.EACCES:
            reason = f"port {server.port} is for the system's administrator; choose one from 1024 with --port."
        else:
            place, reason = "host", f"{error.strerror}."
        yield Problem(f"Waver cannot listen on {server.host}: {reason}", ("server", place))
