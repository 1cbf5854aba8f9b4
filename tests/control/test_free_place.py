"""Why an actor has no place, in words."""

from __future__ import annotations

from typing import Any

import pytest

from router.control.free_place import lacking_text

NODES: list[dict[str, Any]] = [
    {"Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H200": 1.0}, "Labels": {"zone": "a", "pool": "gpu"}},
    {"Resources": {"CPU": 32.0}, "Labels": {"zone": "b"}},
]
FREE = {"CPU": 30.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("bundle", "size", "labels", "expected"),
    [
        ({"CPU": 1.0, "GPU": 1.0}, 1, {}, ""),
        ({"CPU": 1.0, "GPU": 1.0}, 2, {}, "GPUs (2 an actor, 1 free)"),
        ({"CPU": 31.0}, 1, {}, "CPUs (31 an actor, 30 free)"),
        ({"GPU": 4.0}, 1, {}, "a node with GPU 4 (the largest has 2)"),
        ({"CPU": 1.0}, 1, {"zone": "c"}, "a node with the labels zone=c"),
        ({"CPU": 16.0}, 1, {"pool": "gpu"}, "a node with CPU 16 (the largest has 8)"),
        ({"CPU": 1.0}, 1, {"zone": "in(b, c)"}, ""),
        ({"GPU": 1.0}, 1, {"zone": "!a"}, "a node with GPU 1 (the largest has 0)"),
        ({"CPU": 1.0}, 1, {"zone": "!in(a, b)"}, "a node with the labels zone=!in(a, b)"),
        ({"GPU": 1.0, "accelerator_type:H200": 0.001}, 1, {}, ""),
        ({"GPU": 1.0, "accelerator_type:A100": 0.001}, 1, {}, "a node with accelerator type A100"),
    ],
)
def test_what_the_cluster_lacks(bundle: dict[str, float], size: int, labels: dict[str, str], expected: str) -> None:
    assert lacking_text(bundle, size, labels, NODES, FREE) == expected


def test_without_any_node() -> None:
    assert lacking_text({"CPU": 1.0}, 1, {}, [], {}) == "a node with CPU 1 (the largest has 0)"
