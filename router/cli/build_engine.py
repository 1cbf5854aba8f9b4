"""`triptych build-engine`: the TensorRT engine of a deployment, before its encoders start."""

from __future__ import annotations

import logging

from router.control.engine_ahead import build_ahead
from triptych.config import DeploymentConfig


def run_build_engine(config: DeploymentConfig, compute_capability: str) -> int:
    """Builds what is not in the cache folder yet, and says where it lies."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    engine = build_ahead(config, compute_capability)
    how = f"built in {engine.build_s:.1f} s" if engine.build_s else "was there"
    print(f"{engine.path}: {len(engine.data) / 1e6:.1f} MB, {how}")
    return 0
