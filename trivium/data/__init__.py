"""Training data: loading from files and from the Hub, the bundled `numbers` corpus, and fingerprints."""

from trivium.data.arguments import DataArguments
from trivium.data.fingerprints import fingerprint
from trivium.data.loading import load_data, load_split
from trivium.data.numbers import numbers_corpus
from trivium.data.readers import decode_lines, read_lines

__all__ = ["DataArguments", "decode_lines", "fingerprint", "load_data", "load_split", "numbers_corpus", "read_lines"]
