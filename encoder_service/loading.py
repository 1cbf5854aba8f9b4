"""Puts a stage together from the configuration."""

import asyncio
from pathlib import Path

from encoder_service.device_defaults import resolve_section
from encoder_service.engines import EngineSource, HoldWeights, keep_in_place, load_engine
from encoder_service.media.loader import LoaderSource, make_patch_loader
from encoder_service.stage import EncoderStage, StageSettings
from encoder_service.tickets import ProducedTensors
from encoder_service.warm_up import warm_up
from triptych.config import DeploymentConfig
from triptych.media import mute_pillow
from triptych.media.layout import MediaProcessing
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.fingerprint import model_fingerprint
from triptych.models_folder import resolve_model_folder
from triptych.precision import resolve_device, resolve_dtype


async def load_stage(
    config: DeploymentConfig, producer_id: str, hold_weights: HoldWeights = keep_in_place
) -> EncoderStage:
    """Reads the checkpoint's `visual.*` tensors, and no others, on a thread; the stage is still to be started.

    `producer_id` is the actor's incarnation id. Raises ModelError or ConfigurationError.
    """
    folder = resolve_model_folder(config.model.path)
    return await asyncio.to_thread(_load_stage, config, folder, producer_id, hold_weights)


def _load_stage(config: DeploymentConfig, folder: Path, producer_id: str, hold_weights: HoldWeights) -> EncoderStage:
    mute_pillow()
    model = ModelConfig.from_folder(folder)
    device = resolve_device(config.model)
    dtype = resolve_dtype(config.model, device)
    processing = MediaProcessing.from_folder(folder)
    section = resolve_section(config.stages.encoder, device)
    engine = load_engine(EngineSource(folder, model, dtype, device, section, hold_weights))
    loader = make_patch_loader(LoaderSource(processing, device, dtype, section, config.limits))
    warm_up(engine, loader, processing)
    produced = ProducedTensors(
        producer_id=producer_id,
        model_fingerprint=model_fingerprint(folder),
        dtype=dtype,
        hidden_size=model.vision.out_hidden_size,
        merge_size=model.vision.spatial_merge_size,
        patch_dim=model.vision.patch_dim,
    )
    settings = StageSettings(section, config.limits, config.transport)
    return EncoderStage(settings, engine, loader, produced)
