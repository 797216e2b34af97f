"""Weights in and out of transformers' own classes, and out to other engines: no model is locked in."""

from trivium.interop.conversion import Converted, convert

__all__ = ["Converted", "convert"]
