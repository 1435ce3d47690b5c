"""Load the configuration: a YAML file, overridden by environment variables `WAVER_*`, overridden by command-line flags.

Nested keys are joined by two underscores in the environment: `WAVER_SERVER__PORT=9000`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from waver.engines import EngineConfig, LoraConfig, UpstreamConfig, VllmConfig
from waver.policies.select.verifiers import PythonVerifier, VerifierConfig
from waver.resources import DEFAULT_CONFIG, PACKAGE
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.memory.config import MemoryConfig
from waver.server.config_lines import Locator
from waver.server.problems import ConfigError, MisplacedError, Place, Problem
from waver.server.settings import KeysConfig, ServerConfig

PREFIX = "WAVER_"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Names go into URLs and headers."""


FOLDERS = ("probes", "judges", "routers", "calibrations", "tasks", "thresholds", "guards")
"""Sections that give names to folders of what policies use."""


class Config(BaseSettings):
    """Configuration of a server. Unknown keys are errors."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", use_attribute_docstrings=True
    )

    engines: dict[Name, EngineConfig] = Field(min_length=1)
    """Models, by the names that requests use."""
    presets: dict[Name, list[dict[str, Any]]] = {}
    """Lists of policies, by name; a request asks for one as the model `waver/<preset>`."""
    default_preset: str | None = None
    """The preset of requests that name no model, or `default`."""
    policies: dict[str, dict[str, Any]] = {}
    """Defaults for policies' parameters, by policy name."""
    probes: dict[Name, str] = {}
    """Folders of probes (`waver train probe`), by the names that requests may use."""
    judges: dict[Name, str] = {}
    """Folders of judges (`waver train judge`), by the names that requests may use."""
    routers: dict[Name, str] = {}
    """Folders of routers (`waver route learn`), by the names that requests may use."""
    calibrations: dict[Name, str] = {}
    """Folders of calibrated uncertainty (`waver calibrate inv_entropy`), by the names that requests may use."""
    tasks: dict[Name, str] = {}
    """Files of tasks that policies may ask users about (`c_ip`), beside those that come with Waver."""
    thresholds: dict[Name, str] = {}
    """Folders of thresholds (`waver calibrate c_ip`), by the names that requests may use."""
    verifiers: dict[Name, VerifierConfig] = {}
    """Verifiers of the goals that an answer meets (`bes`), by the names that requests may use."""
    entailment: str | None = None
    """Folder of a sequence-classification model of transformers that tells entailment (NLI), for `inv_entropy`."""
    guards: dict[Name, str] = {}
    """Folders of guards (`waver train guard`), by the names that requests may use; `starter` is there anyway."""
    modules: list[str] = []
    """Python modules with policies, gates or transforms of your own; also `WAVER_MODULES`, a JSON list."""
    state: str = "data/state"
    """Folder for what policies keep between requests, by owner."""
    pinned: dict[str, list[dict[str, Any]]] = {}
    """Policies of every request with a key, by the key's name (`*`: all requests): no request can change them or leave
    them out."""
    memory: MemoryConfig = MemoryConfig()
    """Limits of what is remembered for each owner."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Collections of documents, embedders, and limits on what is brought."""
    server: ServerConfig = ServerConfig()
    """Address and limits."""
    keys: KeysConfig = KeysConfig()
    """Stored keys, and what those of `api_keys_env` may do."""

    _environment: ClassVar[Mapping[str, str]] = {}
    _origin: tuple[Path, Mapping[str, Any], Mapping[str, str]] | None = PrivateAttr(None)
    """The file, the flags, and the variables of that moment that it was read from; a server adds to `WAVER_MODULES`
    for the processes that it starts."""

    def read_again(self) -> Config:
        """Read the same file, variables and flags again.

        Raises:
            ConfigError: they are wrong now, or it was not read from a file.
        """
        if self._origin is None:
            raise _unreadable("This configuration was not read from a file.")
        return _load(*self._origin)

    @field_validator("engines")
    @classmethod
    def _find_models(cls, engines: dict[str, EngineConfig]) -> dict[str, EngineConfig]:
        return {
            name: engine
            if isinstance(engine, UpstreamConfig)
            else engine.model_copy(update={"model": find_model(engine.model)})
            for name, engine in engines.items()
        }

    @field_validator(*FOLDERS)
    @classmethod
    def _find_folders(cls, folders: dict[str, str]) -> dict[str, str]:
        return {name: find_model(folder) for name, folder in folders.items()}

    @field_validator("verifiers")
    @classmethod
    def _find_files(cls, verifiers: dict[str, VerifierConfig]) -> dict[str, VerifierConfig]:
        return {
            name: each.model_copy(update={"file": find_model(each.file)}) if isinstance(each, PythonVerifier) else each
            for name, each in verifiers.items()
        }

    @model_validator(mode="after")
    def _check_names(self) -> Config:
        if self.default_preset is not None and self.default_preset not in self.presets:
            names = ", ".join(sorted(self.presets)) or "none"
            message = f"default_preset '{self.default_preset}' is not among the presets: {names}."
            raise MisplacedError(message, ("default_preset",))
        for name in ("default", "waver"):
            if name in self.engines:
                message = f"An engine cannot be named '{name}': as a model it means the default preset."
                raise MisplacedError(message, ("engines", name))
        return self

    @model_validator(mode="after")
    def _check_adapters(self) -> Config:
        for name, engine in self.engines.items():
            if isinstance(engine, LoraConfig):
                base = self.engines.get(engine.base)
                if not isinstance(base, VllmConfig) or not base.args.get("enable_lora"):
                    raise MisplacedError(
                        f"engine '{name}': its base '{engine.base}' should be an engine with backend vllm that has "
                        "enable_lora: true among its args.",
                        ("engines", name, "base"),
                    )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = settings_cls._environment  # type: ignore[attr-defined]
        return init_settings, env_settings, _File(settings_cls)


class _File(YamlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return read_yaml(file_path) or {}


def read_yaml(file: Path) -> Any:
    """Read a YAML file; a key that occurs twice in a mapping is an error.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    _check_keys(yaml.compose(text, Loader=yaml.SafeLoader), set())
    return yaml.safe_load(text)


def _check_keys(node: yaml.Node | None, visited: set[int]) -> None:
    if node is None or id(node) in visited:  # aliases lead to the same node again
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, visited)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(name)
            _check_keys(value, visited)


def find_model(model: str) -> str:
    """Resolve the path of a model or a probe: the path itself if it exists, else the one in the installed package, else
    the string unchanged (a hub id)."""
    beside = PACKAGE / model
    return str(beside) if not Path(model).exists() and beside.exists() else model


def load_config(path: str | Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration: `flags` over the environment over the file at `path` (default: the bundled pair's).

    Raises:
        ConfigError: the file cannot be read, or says something that is not understood; the message is for the user.
    """
    variables = {name.lower(): value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    return _load(Path(path) if path is not None else DEFAULT_CONFIG, dict(flags or {}), variables)


def _load(file: Path, flags: Mapping[str, Any], variables: Mapping[str, str]) -> Config:
    try:
        if not isinstance(read_yaml(file), dict):
            raise _unreadable(f"{file}: a configuration is a YAML mapping with the key 'engines'.")
        reader: type[Config] = type(
            "Config",
            (Config,),
            {"model_config": {"yaml_file": file}, "__doc__": Config.__doc__, "_environment": variables},
        )
        config = reader(**flags)
        config._origin = file, flags, variables
        return config
    except OSError as error:
        raise _unreadable(f"The configuration {file} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise _unreadable(f"The configuration {file}{line} is not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(f"The configuration {file} is not valid YAML: {error}") from error
    except ValidationError as error:
        where = Locator(file, flags)
        raise ConfigError(where.locate(_problem(item)) for item in error.errors()) from error


def _unreadable(message: str) -> ConfigError:
    return ConfigError([Problem(message)])


def _problem(error: Any) -> Problem:
    """Make a sentence of one of pydantic's complaints."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, MisplacedError):
        return Problem(str(cause), cause.place)
    # Behind an engine's name pydantic puts the kind of configuration that it was taken for.
    place = tuple(part for i, part in enumerate(error["loc"]) if not (i == 2 and error["loc"][0] == "engines"))
    where = _name(place)
    if error["type"] == "extra_forbidden":
        return Problem(f"unknown key '{where}'.", place)
    if error["type"] == "missing":
        return Problem(f"'{where}' is required.", place)
    given = f", not {error['input']}" if isinstance(error["input"], int | float) else ""
    return Problem(f"{where}: {error['msg'].removeprefix('Value error, ')}{given}", place)


def _name(place: Place) -> str:
    return ".".join(map(str, place)) or "configuration"
