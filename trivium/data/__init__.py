"""Sentence pairs: the embedded corpus of numbers, and loading of everybody else's."""

from trivium.data.numbers import numbers_corpus
from trivium.data.parallel import DataArguments, load_parallel, read_lines

__all__ = ["DataArguments", "load_parallel", "numbers_corpus", "read_lines"]
