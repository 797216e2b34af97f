"""Tokenizer and tokenizer training."""

from trivium.tokenization.tokenization_trivium import TriviumTokenizer
from trivium.tokenization.train_tokenizer import train_tokenizer

__all__ = ["TriviumTokenizer", "train_tokenizer"]
