"""The alerts and the dashboard ask for metrics that a server has, and the profile `observe` starts what shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Running
from tests.test_deploy import rendered, services
from waver.policies.registry import policies

ROOT = Path(__file__).resolve().parent.parent
OBSERVE = ROOT / "deploy" / "observe"
DASHBOARD = json.loads((OBSERVE / "grafana" / "waver.json").read_text())
RULES = yaml.safe_load((OBSERVE / "alerts.yml").read_text())["groups"][0]["rules"]
OUTSIDE = {"up"}
"""Series that Prometheus makes itself."""
TARGETS = {"instance", "job"}
"""Labels that Prometheus adds."""
METRIC = re.compile(r"\b(?:waver|process)_[a-z_]+\b|\bup\b")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"")
GROUPING = re.compile(r"\bby\s*\(([a-z_, ]*)\)")


def expressions() -> Iterator[str]:
    for rule in RULES:
        yield rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def asked(expression: str) -> tuple[set[str], set[str]]:
    """Return the series and the labels that an expression names."""
    grouped = {name.strip() for some in GROUPING.findall(expression) for name in some.split(",")}
    labels = grouped | set(LABEL.findall(expression))
    return set(METRIC.findall(re.sub(r"\{[^}]*\}|\bby\s*\([^)]*\)", "", expression))), labels - {""}


@pytest.fixture(scope="module")
def offered(running: Running) -> tuple[set[str], set[str]]:
    """The series and the labels of a server, those without a sample yet included."""
    registry = running.runtime.metrics.registry
    series = set(registry._names_to_collectors)
    labels = {"le", *TARGETS}
    for family in registry.collect():
        series |= {sample.name for sample in family.samples} | {family.name}
        labels |= {label for sample in family.samples for label in sample.labels}
    for collector in set(registry._names_to_collectors.values()):
        labels |= set(getattr(collector, "_labelnames", ()))
    # Gauges that appear with the first decision of a gate, or the first budget.
    return series, labels | {"collection", "gate", "threshold", "key", "budget"}


def test_every_metric_that_is_asked_for_exists(offered: tuple[set[str], set[str]]) -> None:
    series, labels = offered
    found = [(expression, *asked(expression)) for expression in expressions()]
    assert len(found) > 30
    for expression, names, keys in found:
        assert names, expression
        assert names - series - OUTSIDE == set(), expression
        assert keys - labels == set(), expression


@pytest.mark.parametrize(
    ("expression", "names", "labels"),
    [
        ('sum by (a, b) (rate(waver_x_total{c="d"}[5m]))', {"waver_x_total"}, {"a", "b", "c"}),
        ('up{job="waver"} == 0 or absent(up{job="waver"})', {"up"}, {"job"}),
    ],
)
def test_names_are_found_in_expressions(expression: str, names: set[str], labels: set[str]) -> None:
    assert asked(expression) == (names, labels)


def test_annotations_use_labels_that_their_expression_keeps() -> None:
    for rule in RULES:
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouping = GROUPING.search(rule["expr"])
        if grouping:
            assert used <= {name.strip() for name in grouping[1].split(",")}, rule["alert"]


def test_the_alerts_that_operators_need_are_there_and_explained() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    assert {
        "WaverDown",
        "WaverEngineDead",
        "WaverQueueFull",
        "WaverGateDrift",
        "WaverFails",
        "WaverBudgetNearlySpent",
    } <= set(names)
    page = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"^\| `(Waver\w+)` \|", page, re.M)) == set(names)


def test_promtool_is_content() -> None:
    """Run where Prometheus is installed (`apt-get install prometheus`)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *command], cwd=OBSERVE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_alert_test_names_series_that_exist(offered: tuple[set[str], set[str]]) -> None:
    tests = yaml.safe_load((OBSERVE / "alerts_test.yml").read_text())["tests"]
    series = {each["series"].split("{")[0] for test in tests for each in test["input_series"]}
    assert series - offered[0] - OUTSIDE == set()
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"]}
    assert fired <= {rule["alert"] for rule in RULES}


def test_the_profile_starts_both_and_mounts_what_they_read() -> None:
    found = services("observe")
    assert set(found) == {"prometheus", "grafana"}
    content: dict[str, Any] = json.loads(rendered("observe").stdout)["configs"]
    for service in found.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"]
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
        for mount in service["configs"]:
            assert "content" in content[mount["source"]] or Path(content[mount["source"]]["file"]).is_file()
    targets = {mount["target"] for mount in found["prometheus"]["configs"]}
    assert f"--config.file={'/etc/prometheus/prometheus.yml'}" in found["prometheus"]["command"]
    prometheus = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert {*prometheus["rule_files"], job["authorization"]["credentials_file"]} <= targets
    names = job["dns_sd_configs"][0]["names"]
    assert set(names) == {name for name in services("cpu", "gpu") if name.startswith("waver-")}
    dashboards = yaml.safe_load((OBSERVE / "grafana" / "dashboards.yml").read_text())["providers"][0]["options"]["path"]
    mounted = {mount["target"] for mount in found["grafana"]["configs"]}
    assert f"{dashboards}/waver.json" in mounted
    assert found["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted
    source = yaml.safe_load((OBSERVE / "grafana" / "datasources.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
    assert used == {source["uid"]}


def test_the_key_for_prometheus_is_no_file_of_the_repository() -> None:
    done = rendered("observe", WAVER_MONITOR_KEY="of-the-monitor")
    assert json.loads(done.stdout)["configs"]["monitor-key"]["content"] == "of-the-monitor"


def test_every_metric_is_on_the_page(offered: tuple[set[str], set[str]]) -> None:
    """`docs/http.md` lists what a server measures."""
    page = (ROOT / "docs" / "http.md").read_text()
    written = set(re.findall(r"`(waver_\w+)`", page))
    own = {name for name in offered[0] if name.startswith("waver_") and not name.endswith(("_created", "_info"))}
    bases = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in own}
    declared = {each.name for policy in policies().values() for each in policy.metrics}
    missing = {base for base in bases - declared if not {base, f"{base}_total"} & written}
    assert missing == set()
