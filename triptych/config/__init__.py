"""The configuration: one schema behind the YAML file, the environment and the command line, a file a section."""

from triptych.config.actor import ActorSection
from triptych.config.control import ControlSection
from triptych.config.deployment import DeploymentConfig, Mode, StagesSection
from triptych.config.encoder import EncoderSection, TensorRTSection, VisionPrecision
from triptych.config.language import LanguageSection, Placement, PrefillDecodeSection
from triptych.config.limits import DefaultsSection, LimitsSection
from triptych.config.model import BUILT_IN_MODEL, DType, ModelSection, Quantization
from triptych.config.router import RouterSection
from triptych.config.sources import CLIENT_VARIABLES, ENVIRONMENT_PREFIX
from triptych.config.transport import TransportSection
from triptych.config.units import MIB

__all__ = [
    "BUILT_IN_MODEL",
    "CLIENT_VARIABLES",
    "ENVIRONMENT_PREFIX",
    "MIB",
    "ActorSection",
    "ControlSection",
    "DType",
    "DefaultsSection",
    "DeploymentConfig",
    "EncoderSection",
    "LanguageSection",
    "LimitsSection",
    "Mode",
    "ModelSection",
    "Placement",
    "PrefillDecodeSection",
    "Quantization",
    "RouterSection",
    "StagesSection",
    "TensorRTSection",
    "TransportSection",
    "VisionPrecision",
]
