"""Data to learn from: the embedded corpus of numbers, and loading of everybody else's."""

from trivium.data.files import read_lines
from trivium.data.fingerprints import fingerprint
from trivium.data.loading import DataArguments, load_data
from trivium.data.numbers import numbers_corpus

__all__ = ["DataArguments", "fingerprint", "load_data", "numbers_corpus", "read_lines"]
