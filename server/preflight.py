"""Find what would keep a server from starting, before the libraries and the models are loaded.

Imports nothing heavy: what is wrong with a port, a folder or an installation is said within a second.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from importlib.util import find_spec
from pathlib import Path

from waver.engines import LoraConfig, TransformersConfig, UpstreamConfig, VllmConfig
from waver.engines.config import EngineConfig
from waver.engines.vllm.unsupported import refuse_adapter
from waver.extras import how_to_install, how_to_install_vllm
from waver.server.config import Config
from waver.server.keys import keys_from_environment
from waver.server.settings import ServerConfig

RETRIEVAL = {"faiss": "retrieval", "sentence_transformers": "retrieval"}
"""Modules that lookups need, and the extra that brings each."""


def check_start(config: Config) -> None:
    """Check that the address is free and not open to all, that model folders are there, and packages installed.

    Raises:
        ValueError: one is not; the message is a sentence for the user.
    """
    check_exposure(config.server)
    for name, engine in config.engines.items():
        _check_engine(name, engine)
    _check_retrieval(config)
    _check_address(config.server)


def check_exposure(server: ServerConfig) -> None:
    """Refuse an address that others can reach where there are no keys.

    Raises:
        ValueError: it is one.
    """
    try:
        local = ipaddress.ip_address(server.host).is_loopback
    except ValueError:
        local = server.host == "localhost"
    if not local and not keys_from_environment(server.api_keys_env) and not server.allow_no_keys:
        raise ValueError(
            f"{server.host} can be reached from other machines: put API keys into {server.api_keys_env} (separated by "
            "commas), or say that none are wanted with --allow-no-keys."
        )


def _check_engine(name: str, engine: EngineConfig) -> None:
    if isinstance(engine, LoraConfig):
        refuse_adapter(name, engine.model)
    adapter = engine.adapter if isinstance(engine, TransformersConfig) else None
    if adapter is not None and not (Path(adapter).expanduser() / "adapter_config.json").exists():
        raise ValueError(f"Engine '{name}': {adapter} is no adapter: it has no adapter_config.json.")
    if isinstance(engine, VllmConfig | LoraConfig) and find_spec("vllm") is None:
        raise ValueError(f"Engine '{name}' needs vLLM, which is not installed: {how_to_install_vllm()}")
    if isinstance(engine, UpstreamConfig):
        return
    folder = Path(engine.model).expanduser()
    if not folder.exists():
        # `name` and `owner/name` may be a hub's; whoever loads it says whether it is.
        if engine.model.startswith(("/", ".", "~")) or engine.model.count("/") > 1:
            raise ValueError(f"Engine '{name}': there is no model at {engine.model}.")
    elif isinstance(engine, TransformersConfig) and not (folder / "config.json").exists():
        raise ValueError(f"Engine '{name}': {engine.model} is no model: it has no config.json.")


def _check_retrieval(config: Config) -> None:
    """Check that the packages of retrieval are installed, if a preset, the store or a named embedder needs them."""
    looks_up = any("collection" in policy for preset in config.presets.values() for policy in preset)
    # A named embedder is loaded at the start.
    named = not config.retrieval.model_fields_set.isdisjoint({"embedder", "embedders"})
    wanted = RETRIEVAL if looks_up or named else {}
    if config.retrieval.store == "qdrant":
        wanted = {**RETRIEVAL, "qdrant_client": "qdrant"}
    for module, extra in wanted.items():
        if find_spec(module) is None:
            raise ValueError(f"The configuration looks things up, which needs {module}: {how_to_install(extra)}")


def _check_address(server: ServerConfig) -> None:
    if server.port == 0:
        return
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
            reason = f"{error.strerror}."
        raise ValueError(f"Waver cannot listen on {server.host}: {reason}") from error
