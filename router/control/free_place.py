"""Why an actor has no place: what its processes ask for, held against the nodes of the cluster. Plain functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def lacking_text(
    bundle: Mapping[str, float],
    size: int,
    labels: Mapping[str, str],
    nodes: Sequence[Mapping[str, Any]],
    free: Mapping[str, float],
) -> str:
    """In words, what one more actor of `size` processes needs and the cluster does not have; empty when nothing.

    bundle: what each process holds. nodes: those alive, as `ray.nodes()` tells them. free: summed over nodes; that
    it is enough and yet scattered goes unseen.
    """
    fitting = [node for node in nodes if _has_labels(node["Labels"], labels)]
    if labels and not fitting:
        return f"a node with the labels {_listed(labels)}"
    for name, need in bundle.items():
        if name.startswith("accelerator_type:") and not any(name in node["Resources"] for node in fitting):
            return f"a node with {name.replace('_', ' ').replace(':', ' ')}"
        largest = max((node["Resources"].get(name, 0.0) for node in fitting), default=0.0)
        if need > largest:
            return f"a node with {name} {need:g} (the largest has {largest:g})"
    return " and ".join(
        f"{name}s ({size * need:g} an actor, {free.get(name, 0.0):g} free)"
        for name, need in bundle.items()
        if not name.startswith("accelerator_type:") and size * need > free.get(name, 0.0)
    )


def _has_labels(present: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """By Ray's selectors: value, !value, in(a, b), !in(a, b)."""
    return all(_matches(present.get(key), selector) for key, selector in wanted.items())


def _matches(value: str | None, selector: str) -> bool:
    is_negative, plain = selector.startswith("!"), selector.removeprefix("!")
    names = plain[len("in(") : -1].split(",") if plain.startswith("in(") and plain.endswith(")") else [plain]
    return (value in [name.strip() for name in names]) is not is_negative


def _listed(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
