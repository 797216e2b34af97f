"""Convert models to and from the native transformers classes, and export them to other inference engines."""

from trivium.interop.conversion import Converted, convert

__all__ = ["Converted", "convert"]
