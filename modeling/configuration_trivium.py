"""Hub shim: `save_pretrained` replaces this file with the real configuration (see tests/test_packaging.py)."""

from trivium.configuration.configuration_trivium import TriviumConfig

__all__ = ["TriviumConfig"]
