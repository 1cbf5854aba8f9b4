"""The Grafana dashboard asks for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric

from router.api.metrics import RouterMetrics
from triptych.telemetry.actor_metrics import ActorMetrics
from triptych.v1 import admin_pb2, common_pb2, inference_pb2

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/triptych.json"
NAME = re.compile(r"triptych:[a-z0-9_]+")
BY = re.compile(r"by \(([a-z_, ]+)\)")


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Every sample's name in a scrape, with its labels."""
    names: dict[str, set[str]] = {}
    for family in families():
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def families() -> Iterator[Metric]:
    metrics = RouterMetrics("tiny", lambda: 0)
    clock = metrics.request("grpc")
    summary = inference_pb2.GenerateSummary(
        finish_reason=common_pb2.FINISH_REASON_STOP,
        usage=common_pb2.Usage(media_tokens=1),
        route=inference_pb2.Route(kv_lane="shm", embedding_lanes=["shm"]),
    )
    clock.note(inference_pb2.GenerateResponse(summary=summary))
    clock.end("ok")
    actors = ActorMetrics("tiny")
    metrics.registry.register(actors)
    info = admin_pb2.ActorInfo(
        actor_id="a",
        stage=common_pb2.STAGE_PREFILL_DECODE,
        encoder=admin_pb2.EncoderCounters(),
        language=admin_pb2.LanguageCounters(),
        lane_counters=[admin_pb2.LaneCounters(lane="shm")],
    )
    actors.update([info], [admin_pb2.StageStatus(stage=common_pb2.STAGE_ENCODER)])
    yield from metrics.registry.collect()


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_of_the_dashboard_exists(expression: str, labels: dict[str, set[str]]) -> None:
    names = NAME.findall(expression)
    assert names
    for name in names:
        assert name in labels
    for group in BY.findall(expression):
        for label in group.split(", "):
            assert label in labels[names[0]], label


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(place["x"], place["y"]) for place in (panel["gridPos"] for panel in panels)]
    assert len(set(places)) == len(places)


def test_the_gone_leave_no_labels_behind() -> None:
    actors = ActorMetrics("tiny")

    def ids() -> set[str]:
        return {
            sample.labels["actor_id"] for f in actors.collect() for sample in f.samples if "actor_id" in sample.labels
        }

    info = admin_pb2.ActorInfo(stage=common_pb2.STAGE_DECODE, language=admin_pb2.LanguageCounters())
    for number in range(5):
        info.actor_id = f"decode-{number}"
        actors.update([info], [])
        assert ids() == {f"decode-{number}"}
