"""Save small models, render their model cards, and parse the rendered cards."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from model_classes import LAYERS
from tiny import shake, tiny_config
from transformers import PreTrainedModel

from trivium import TriviumTokenizer
from trivium.hub.card import render_card

TEXTS = ["two dogs ran across the road", "the cat sat on the mat", "birds fly south in winter"]


def save_small(model_class: Any, tokenizer: TriviumTokenizer, folder: Path, **options: Any) -> PreTrainedModel:
    config = tiny_config(vocab_size=len(tokenizer), **LAYERS[model_class], **options)
    model = shake(model_class(config), std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def card_of(folder: Path, *overrides: str, repo_id: str | None = "someone/model") -> ModelCard:
    return ModelCard(render_card(folder, repo_id, overrides)["README.md"].decode())


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def code_of(text: str, language: str) -> list[str]:
    return [token.content for token in parsed(text) if token.type == "fence" and token.info == language]
