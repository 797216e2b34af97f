"""Hub shim: `save_pretrained` puts the real configuration file in this one's place (see tests/test_packaging.py)."""

from trivium.configuration.configuration_trivium import TriviumConfig

__all__ = ["TriviumConfig"]
