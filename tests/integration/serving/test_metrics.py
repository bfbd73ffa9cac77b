"""The names and units of /metrics, and the Grafana dashboard that reads them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.serving.world import Service

REPOSITORY = Path(__file__).resolve().parents[3]
DASHBOARD = REPOSITORY / "configs" / "grafana-dashboard.json"
ALERTS = REPOSITORY / "configs" / "prometheus-alerts.yaml"
SERIES = re.compile(r"(trialgate_\w+)(?:\{([^}]*)\})?")
UNITS = ("_seconds", "_bytes", "_info", "_texts", "_tokens", "_in_progress")


@pytest.fixture(scope="module")
def labels_of(service: Service) -> dict[str, set[str]]:
    """Every series of /metrics and its labels, after requests of every kind."""
    service.predict("good")
    service.predict("good " * 100, truncate=False)
    service.client.post("/explain", json={"text": "good"})
    service.client.post("/explain", json={"text": "good", "label": "none of them"})
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(service.client.get("/metrics").text):
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def targets(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel.get("targets", [])


def test_names_and_units_follow_the_convention(service: Service):
    text = service.client.get("/metrics").text
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"trialgate_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{family.name}_total"}
        else:
            assert family.type in ("histogram", "gauge")
            assert family.name.endswith(UNITS)
            assert not family.name.endswith("_total")
    for name in re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE):
        assert name.endswith("_total")


def asks_for_what_there_is(expression: str, labels_of: dict[str, set[str]], ours: frozenset[str] = frozenset()) -> None:
    """``ours``: labels that Prometheus puts on every series itself."""
    asked = SERIES.findall(expression)
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    for name, matchers in asked:
        assert name in labels_of, f"{expression}: there is no {name}"
        wanted = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) | grouped
        assert wanted <= labels_of[name] | ours, f"{expression}: {name} has {sorted(labels_of[name])}"


def test_the_dashboard_asks_only_for_what_there_is(dashboard: dict[str, Any], labels_of: dict[str, set[str]]):
    for target in targets(dashboard):
        expression = target["expr"]
        assert SERIES.search(expression), expression
        asks_for_what_there_is(expression, labels_of)
        grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped, expression


def test_the_alerts_ask_only_for_what_there_is_and_say_what_to_do(labels_of: dict[str, set[str]]):
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    headings = re.findall(
        r"^## (\w+)$", (REPOSITORY / "docs" / "operating.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        asks_for_what_there_is(rule["expr"], labels_of, frozenset({"job"}))
        assert rule["alert"] in headings
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
    assert {rule["alert"] for rule in group["rules"]} == {name for name in headings if name.startswith("Trialgate")}


def test_the_dashboard_shows_every_series(dashboard: dict[str, Any], labels_of: dict[str, set[str]]):
    family = re.compile(r"_(bucket|sum|count)$")
    shown = {family.sub("", name) for target in targets(dashboard) for name, _ in SERIES.findall(target["expr"])}
    assert shown == {family.sub("", name) for name in labels_of}


def test_a_counter_is_read_as_a_rate_and_nothing_else_is(dashboard: dict[str, Any]):
    for target in targets(dashboard):
        expression = target["expr"]
        assert expression.count("(") == expression.count(")")
        for found in SERIES.finditer(expression):
            counts = re.search(r"_(total|bucket|sum|count)$", found[1]) is not None
            rated = re.search(r"(rate|increase)\($", expression[: found.start()]) is not None
            ranged = expression[found.end() :].startswith("[$__rate_interval]")
            assert counts == rated == ranged, expression


def test_the_dashboard_is_what_grafana_imports(dashboard: dict[str, Any]):
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    assert "id" not in dashboard  # Grafana gives it; a foreign one would overwrite another dashboard
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert set(place) == {"x", "y", "w", "h"}
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in ("row", "timeseries", "stat")
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references == [chr(ord("A") + place) for place in range(len(references))]
