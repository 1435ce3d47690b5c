"""The Helm chart: what can be read without Helm is checked here; with Helm's library, its manifests are, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from waver import __version__
from waver.server.config import load_config
from waver.server.run import CLOSE, FLUSH

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "waver"
SETS = ("values.yaml", "values-one-gpu.yaml", "values-two-gpus.yaml", "values-cluster.yaml")


def values(name: str) -> dict[str, Any]:
    """Return the values of a file, with a word on keys where it leaves that to the operator."""
    found: dict[str, Any] = yaml.safe_load((CHART / name).read_text())
    if not found.get("keys", {}).get("existingSecret"):
        found["keys"] = {"allowNone": True}
    return found


def manifests(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what Helm makes of the chart; skipped where its library is not installed (`helm-python-sdk`)."""
    helm = pytest.importorskip("helm_python")
    with helm.Chart.load(str(CHART)) as chart:
        made = chart.render(values=given, name="demo")
    return [each for text in made.values() for each in yaml.safe_load_all(text) if each]


def test_the_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__


@pytest.mark.parametrize("name", SETS[1:])
def test_the_configuration_of_values_can_be_read(name: str, tmp_path: Path) -> None:
    given = values(name)
    engines = {
        key: {"backend": "openai", "model": each["model"], "base_url": f"http://{key}:8000/v1"}
        for key, each in given["vllm"]["engines"].items()
    }
    file = tmp_path / "waver.yaml"
    file.write_text(yaml.safe_dump({**given["config"], "engines": engines}))
    config = load_config(file)
    used = {policy[place] for preset in config.presets.values() for policy in preset for place in ("small", "large")}
    assert used == set(config.engines)
    for each in given["vllm"]["engines"].values():
        parallel = [word.split("=")[1] for word in each["args"] if word.startswith("--tensor-parallel-size=")]
        assert each["gpus"] == int(parallel[0] if parallel else 1)


def test_every_set_of_values_overrides_values_that_there_are() -> None:
    def unknown(own: Any, all_of_them: Any, path: str = "") -> list[str]:
        found = []
        for key, value in own.items():
            if key not in all_of_them:
                found.append(path + key)
            elif isinstance(value, dict) and all_of_them[key]:
                found += unknown(value, all_of_them[key], f"{path}{key}.")
        return found

    known = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in SETS[1:]:
        assert unknown(yaml.safe_load((CHART / name).read_text()), known) == []


@pytest.mark.parametrize("name", SETS)
def test_manifests_are_valid_and_say_what_is_meant(name: str, tmp_path: Path) -> None:
    made = manifests(values(name))
    validate = pytest.importorskip("kubernetes_validate").validate
    for each in made:
        if each["kind"] != "ServiceMonitor":  # of the Prometheus operator
            validate(each, "1.32", strict=True)
    (server,) = [each for each in made if each["kind"] == "Deployment"]
    pod = server["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["terminationGracePeriodSeconds"] > load_config().server.shutdown_grace + FLUSH + CLOSE
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    configs = [each for each in made if each["kind"] == "ConfigMap"]
    assert bool(configs) == (name != "values.yaml") == ("--config" in container["args"])
    if not configs:
        return
    file = tmp_path / "waver.yaml"
    file.write_text(configs[0]["data"]["waver.yaml"])
    servers = {each["metadata"]["name"]: each["spec"]["replicas"] for each in made if each["kind"] == "StatefulSet"}
    for engine, config in load_config(file).engines.items():
        urls = [config.base_url, *config.replicas]  # type: ignore[union-attr]
        own = f"demo-vllm-{engine}"
        assert urls == [f"http://{own}-{i}.{own}:8000/v1" for i in range(servers[own])]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "keys.existingSecret"),
        ({"keys": {"allowNone": True}, "replicas": 2}, "storage.enabled=false"),
        ({"keys": {"allowNone": True}, "autoscaling": {"enabled": True}}, "storage.enabled=false"),
        ({"keys": {"allowNone": True}, "vllm": {"engines": {"A_b": {"model": "m"}}}}, "lower-case letters"),
    ],
)
def test_mistakes_are_refused_with_a_sentence(given: dict[str, Any], sentence: str) -> None:
    helm = pytest.importorskip("helm_python")
    with pytest.raises(helm.HelmRenderError, match=sentence):
        manifests(given)
