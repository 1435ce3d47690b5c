"""The container files, read by the programs that read them elsewhere, and held against what they speak of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

from waver import __version__
from waver.cli import app
from waver.server.config import load_config
from waver.server.run import CLOSE, FLUSH

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", "")
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
PAGE = (ROOT / "docs" / "deploy.md").read_text()


def program(name: str) -> str:
    """Locate a program of the dependency group `containers`; the test is skipped where there is no build of it."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (the dependency group `containers` has it)")
    return found


def rendered(*profiles: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what `docker compose config` makes of the file: parsed, checked against the Compose schema, with
    variables."""
    command = [program("docker-compose"), "--env-file", "/dev/null", "--file", str(ROOT / "docker-compose.yml")]
    command += [f"--profile={profile}" for profile in profiles]
    return subprocess.run(
        [*command, "config", "--format", "json"], env=environment, capture_output=True, text=True, check=False
    )


def services(*profiles: str, **environment: str) -> dict[str, Any]:
    done = rendered(*profiles, **environment)
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout)["services"]
    return out


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages by name: instructions with their arguments."""
    out: dict[str, list[tuple[str, str]]] = {"": []}
    for line in filter(None, map(str.strip, DOCKERFILE.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            out[rest.split(" AS ")[1]] = []
        out[list(out)[-1]].append((instruction, rest.strip()))
    return out


def arguments(stage: str, instruction: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == instruction]


IMAGES = {"waver": "waver-cpu", "vllm": "vllm-small"}
"""The stages that run, and a service of each."""


def test_the_linter_has_nothing_to_say_about_the_dockerfile() -> None:
    done = subprocess.run(
        [program("hadolint"), "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_profiles_start_what_they_say() -> None:
    assert set(services("cpu")) == {"waver-cpu"}
    assert set(services("gpu")) == {"waver-gpu", "vllm-small", "vllm-large"}


def test_waver_is_open_to_others_only_with_keys() -> None:
    everything = services("cpu", "gpu")
    for name, service in everything.items():
        assert [port["host_ip"] for port in service.get("ports", [])] == ["127.0.0.1"] * ("waver" in name)
    refused = rendered("cpu", WAVER_BIND="0.0.0.0")
    assert refused.returncode != 0
    assert "WAVER_API_KEYS" in refused.stderr
    (port,) = services("cpu", WAVER_BIND="0.0.0.0", WAVER_API_KEYS="a,b")["waver-cpu"]["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("0.0.0.0", "8000", 8000)


def test_no_secret_is_written_down() -> None:
    found = {
        (name, value)
        for service in services("cpu", "gpu").values()
        for name, value in service["environment"].items()
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name)
    }
    assert {name for name, _ in found} >= {"WAVER_API_KEYS", "HF_TOKEN"}
    assert {value for _, value in found} <= {None, "", "true"}
    assert not re.search("KEY|TOKEN|SECRET|PASSWORD", DOCKERFILE)


def test_versions_are_pinned() -> None:
    bases = dict(argument.split("=") for argument in arguments("", "ARG"))
    assert [base for base in bases.values() if not re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", base)] == []
    names = {f"${{{name}}}" for name in bases}
    assert {base.split(" AS ")[0] for stage in list(stages())[1:] for base in arguments(stage, "FROM")} == names
    (wanted,) = map(Requirement, PROJECT["project"]["optional-dependencies"]["vllm"])
    assert wanted.specifier.contains(bases["VLLM_IMAGE"].split(":v")[1])
    for service in services("cpu", "gpu").values():
        assert service["image"].endswith(f":{__version__}")
        assert service["build"]["target"] in stages()


@pytest.mark.parametrize("stage", IMAGES)
def test_nothing_runs_as_root(stage: str) -> None:
    instructions = [name for name, _ in stages()[stage]]
    (user,) = arguments(stage, "USER")
    assert all(int(number) >= 10000 for number in user.split(":"))
    assert "RUN" not in instructions[instructions.index("USER") :]
    for service in services("cpu", "gpu").values():
        assert service.get("user") is None
        assert service["cap_drop"] == ["ALL"]
        assert service.get("privileged") is None


@pytest.mark.parametrize("stage", IMAGES)
def test_ports_and_probes_agree(stage: str) -> None:
    (probe,) = arguments(stage, "HEALTHCHECK")
    address, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", probe).groups()  # type: ignore[union-attr]
    assert path == {"waver": "/ready", "vllm": "/health"}[stage]
    assert [address] == arguments(stage, "EXPOSE")
    compile(json.loads(probe.split("CMD ")[1])[2], "probe", "exec")
    service = services("cpu", "gpu")[IMAGES[stage]]
    if stage == "vllm":
        assert f"--port={address}" in service["command"]
    else:
        assert [port["target"] for port in service["ports"]] == [int(address)] == [load_config().server.port]


@pytest.mark.parametrize("stage", IMAGES)
def test_signals_reach_the_program_and_it_is_given_time(stage: str) -> None:
    (entry,) = arguments(stage, "ENTRYPOINT")
    assert json.loads(entry)
    assert arguments(stage, "STOPSIGNAL") == ["SIGTERM"]
    grace = services("cpu", "gpu")[IMAGES[stage]]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > load_config().server.shutdown_grace + FLUSH + CLOSE


def test_the_build_sees_what_the_wheel_needs_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    seen = {line[1:] for line in lines if line.startswith("!")}
    packages = {"waver", *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}
    assert seen == packages | {"pyproject.toml", "uv.lock", "requirements", "README.md", "LICENSE"}
    copied = [rest for stage in stages() for rest in arguments(stage, "COPY") if "--from" not in rest]
    for name in {name for rest in copied for name in rest.split()[:-1]} - {"."}:
        assert name in seen
        assert (ROOT / name).exists()
    hidden = [line.removeprefix("**/") for line in lines[1:] if line[0] not in "!#"]
    assert any(fnmatch(".env.local", pattern) for pattern in hidden[1:])


def test_waver_waits_for_small_and_then_large() -> None:
    gpu = services("gpu")
    waits = {name: set(service.get("depends_on", {})) for name, service in gpu.items()}
    assert waits == {
        "waver-gpu": {"vllm-small", "vllm-large"},
        "vllm-large": {"vllm-small"},
        "vllm-small": set(),
    }
    conditions = {each["condition"] for service in gpu.values() for each in service.get("depends_on", {}).values()}
    assert conditions == {"service_healthy"}


def test_waver_reads_its_configuration_and_finds_both_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"WAVER_SMALL_MODEL": "a/little", "WAVER_LARGE_MODEL": "b/big", "WAVER_LARGE_ARGS": "--seed=1 --x='y z'"}
    done = rendered("gpu", **chosen)
    content = json.loads(done.stdout)
    gpu = content["services"]
    waver_gpu = gpu["waver-gpu"]
    for name, value in waver_gpu["environment"].items():
        monkeypatch.setenv(name, value or "")
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = serve.make_context("serve", waver_gpu["command"][1:])
    assert waver_gpu["command"][0] == "serve"
    (mounted,) = waver_gpu["configs"]
    assert mounted["target"] == str(context.params["config"])
    config = load_config(content["configs"][mounted["source"]]["file"])
    for name, engine in config.engines.items():
        service = gpu[f"vllm-{name}"]
        assert engine.model_dump()["base_url"] == f"http://vllm-{name}:8000/v1"
        assert service["command"][0] == engine.model == {"small": "a/little", "large": "b/big"}[name]
    assert gpu["vllm-large"]["command"][-2:] == ["--seed=1", "--x=y z"]


def test_both_sides_have_the_same_models_by_default() -> None:
    gpu = services("gpu")
    for name, engine in load_config(ROOT / "configs" / "compose-gpu.yaml").engines.items():
        assert gpu[f"vllm-{name}"]["command"][0] == engine.model
        assert gpu["waver-gpu"]["environment"][f"WAVER_ENGINES__{name.upper()}__MODEL"] == engine.model


def test_every_variable_is_on_the_page() -> None:
    used = dict(re.findall(r"\$\{(\w+)(?::-([^${}]*)\}|)", COMPOSE_TEXT)) | {"HF_TOKEN": ""}
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", PAGE, re.M)
    assert {name: default.strip("`") for name, default in rows} == {n: d or "" for n, d in used.items()}
