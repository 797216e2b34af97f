"""Model configuration and presets."""

from trivium.configuration.configuration_trivium import TriviumConfig
from trivium.configuration.presets import PRESETS, preset_config

__all__ = ["PRESETS", "TriviumConfig", "preset_config"]
