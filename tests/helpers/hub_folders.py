"""Model folders for tests that publish to the Hub."""

from pathlib import Path

from transformers import PreTrainedModel

from trivium import TriviumTokenizer


def save(folder: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer, **options: str) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder
