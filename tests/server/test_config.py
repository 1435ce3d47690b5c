"""Configuration: file < environment < flags, and sentences for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from waver.resources import DEFAULT_CONFIG
from waver.server.config import load_config
from waver.server.run import serve


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(**content: Any) -> Path:
        file = tmp_path / "waver.yaml"
        file.write_text(yaml.safe_dump({"engines": {"small": {"backend": "transformers", "model": "x/y"}}, **content}))
        return file

    return write


def test_bundled_configuration_finds_its_models_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config()
    assert list(config.engines) == ["small", "large"]
    assert all(Path(engine.model).is_dir() for engine in config.engines.values())
    assert config.default_preset == "frugal"
    assert DEFAULT_CONFIG.exists()


def test_flags_over_environment_over_file(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(server={"port": 1, "max_queue": 11, "host": "localhost"})
    monkeypatch.setenv("WAVER_SERVER__PORT", "2")
    monkeypatch.setenv("WAVER_SERVER__MAX_QUEUE", "22")
    monkeypatch.setenv("WAVER_ENGINES__SMALL__DEVICE", "cpu")
    config = load_config(file, {"server": {"port": 3}})
    assert (config.server.port, config.server.max_queue, config.server.host) == (3, 22, "localhost")
    assert (config.engines["small"].device, config.engines["small"].model) == ("cpu", "x/y")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"sever": {}}, "unknown key 'sever'"),
        ({"server": {"prot": 1}}, "unknown key 'server.prot'"),
        ({"server": {"port": "http"}}, "server.port: "),
        ({"engines": {"a": {"backend": "transformers"}}}, "'engines.a.model' is required"),
        ({"engines": {"a": {"backend": "magic", "model": "x"}}}, "engines.a: backend should be transformers, "),
        ({"engines": {"a": {"backend": "lora", "model": "x"}}}, "'engines.a.base' is required"),
        ({"engines": {"a": {"backend": "lora", "base": "b", "model": "x"}}}, "engine 'a': its base 'b' should be "),
        (
            {"engines": {"a": {"backend": "lora", "base": "b", "model": "x"}, "b": {"backend": "vllm", "model": "y"}}},
            "enable_lora: true among its args",
        ),
        ({"engines": {}}, "engines: "),
        ({"default_preset": "none"}, "default_preset 'none' is not among the presets"),
        ({"engines": {"default": {"model": "x"}}}, "cannot be named 'default'"),
        ({"presets": {"a b": []}}, "presets.a b"),
    ],
)
def test_mistakes_get_a_sentence(write: Any, content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        load_config(write(**content))
    assert sentence in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "", "\x00"])
def test_files_that_are_no_mapping(tmp_path: Path, text: str) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"waver\.yaml"):
        load_config(file)


@pytest.mark.parametrize(
    "text",
    [
        "engines: {a: {backend: transformers, model: x/y}}\nserver: {port: 1}\nserver: {port: 2}\n",
        "engines:\n  a: {backend: transformers, model: x/y, model: z}\n",
        "engines: {a: {backend: transformers, model: x/y}}\npresets: {p: [{name: ead, name: route}]}\n",
    ],
)
def test_a_key_that_is_there_twice_is_a_mistake(tmp_path: Path, text: str) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"the key '(server|model|name)' is there twice"):
        load_config(file)


def test_anchors_and_merges_are_no_doubles(tmp_path: Path) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text(
        "engines:\n  a: &a {backend: transformers, model: x/y}\n  b: &b {<<: *a, model: y/z}\n"
        "  c: {<<: *b, model: z/a}\n"
    )
    assert [engine.model for engine in load_config(file).engines.values()] == ["x/y", "y/z", "z/a"]


def test_missing_file_is_said_and_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve("no/such.yaml") == 1
    assert capsys.readouterr().err == "The configuration no/such.yaml cannot be read: No such file or directory.\n"


def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "waver.yaml"
    file.write_text("engines:\n  small: {model: x\nserver: {port: 1}\n")
    assert serve(str(file)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"The configuration {file}:3 is not valid YAML: ")
    assert len(said.splitlines()) == 1


def test_a_preset_that_cannot_run_stops_the_start(tiny_pair: dict[str, Path], write: Any) -> None:
    import asyncio

    from waver.server.runtime import Runtime

    engines = {"small": {"model": str(tiny_pair["small"])}}
    runtime = Runtime(load_config(write(engines=engines, presets={"p": [{"name": "ead", "large": "huge"}]})))
    failed: list[bool] = []
    asyncio.run(runtime.start(lambda: failed.append(True)))
    assert failed
    assert runtime.failure is not None
    assert "preset 'p'" in runtime.failure


def test_an_embedder_that_cannot_be_loaded_stops_the_start(tiny_config: dict[str, Any], write: Any) -> None:
    import asyncio

    from waver.server.runtime import Runtime

    runtime = Runtime(load_config(write(**{**tiny_config, "retrieval": {"embedder": str(Path(__file__).parent)}})))
    asyncio.run(runtime.start())
    assert runtime.failure is not None
    assert "is not a sentence-transformers model" in runtime.failure


def test_what_is_loaded_is_told_before_the_first_request_is_let_in(tiny_config: dict[str, Any], write: Any) -> None:
    import asyncio

    from waver.server.runtime import Runtime

    runtime = Runtime(load_config(write(**tiny_config)))
    seen: list[tuple[list[str], bool]] = []
    asyncio.run(runtime.start(on_loaded=lambda: seen.append((sorted(runtime.engines), runtime.ready))))
    assert runtime.loaded
    assert seen == [(["large", "small"], False)]


WATCHED = """
import asyncio, gc, os, signal, sys, threading, time
from pathlib import Path
from waver.server import reload
from waver.server.run import serve

file, refused, taken = map(Path, sys.argv[1:])
outcomes = []

async def watched(here, reload=reload.reload):
    while not here.loaded:
        await asyncio.sleep(0.05)
    try:
        outcomes.append(await reload(here))
    except ValueError as error:
        outcomes.append(str(error))
        raise

def until(condition):
    while not condition():
        time.sleep(0.05)

def watch():
    until(gc.get_freeze_count)
    print(gc.get_freeze_count(), len(gc.get_objects()))
    for number, text in enumerate((refused, taken), 1):
        os.replace(text, file)
        os.kill(os.getpid(), signal.SIGHUP)
        until(lambda: len(outcomes) == number)
        print(outcomes[-1])
    os.kill(os.getpid(), signal.SIGTERM)

sys.modules["waver.server.run"].reload = watched
threading.Thread(target=watch, daemon=True).start()
serve(file)
"""


@pytest.fixture(scope="module")
def watched(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """The lines that are printed beside a server, from inside its process, and what it logs. It is told to read its
    file again with a change that needs a new start, and then with one that does not."""
    folder = tmp_path_factory.mktemp("watched")
    contents = (
        tiny_config,
        {**tiny_config, "state": "elsewhere"},
        {**tiny_config, "presets": {}, "default_preset": None},
    )
    files = [folder / f"{number}.yaml" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", WATCHED, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, -15), done.stderr
    return done.stdout.splitlines(), done.stderr


def test_a_server_spares_the_garbage_collector_what_it_has_loaded(watched: tuple[list[str], str]) -> None:
    """A full collection walks through torch and all that it brings, and every stream stands still meanwhile."""
    kept, walked = map(int, watched[0][0].split())
    assert kept > 10 * walked


def test_sighup_reads_the_file_again(watched: tuple[list[str], str]) -> None:
    lines, log = watched
    assert lines[1] == "state changes only with a new start of the server; nothing was changed."
    assert lines[2] == "['default_preset', 'presets.coin', 'presets.frugal']"
    assert '"the configuration is reloaded"' in log
