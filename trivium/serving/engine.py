"""Tokenize texts and run the model on batches of them, with torch, CTranslate2 or ONNX Runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trivium.modeling.pipeline_translation import EXTRA_LENGTH, cap_length

from .limits import Refusal

# Texts share a batch if their lengths fall into the same interval of this many tokens. The maximum length of a
# translation thus depends only on its own text, never on the other texts of the batch.
LENGTH_STEP = 32


@dataclass(frozen=True)
class Job:
    """A tokenized text and its generation settings.

    Attributes:
        input_ids: The token ids.
        options: Arguments of `generate()`, as sorted pairs; only jobs with equal options share a batch.
    """

    input_ids: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> tuple[tuple[str, Any], ...]:
        """Return the settings that all jobs of a batch must have in common."""
        return self.options

    @property
    def cost(self) -> int:
        """Return the number of tokens that the text adds to a batch, which has one row per beam."""
        return len(self.input_ids) * int(dict(self.options).get("num_beams", 1))


class Translator:
    """Engine that translates batches of texts.

    Args:
        model: An encoder-decoder with `generate()`: a model, a `CTranslate2Model` or an `OnnxModel`.
        tokenizer: Its tokenizer.
        max_tokens: Maximum number of tokens of a text; a model may allow fewer.
        beams: Number of beams; None for `num_beams` of the saved generation settings.

    Raises:
        ValueError: The model is not an encoder-decoder.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int, beams: int | None = None
    ) -> None:
        if not model.config.is_encoder_decoder:
            raise ValueError("model is not an encoder-decoder, but only those translate. Serve a translation model.")
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = cap_length(model.config, max_tokens)
        self.beams = beams or model.generation_config.num_beams or 1

    def warm_up(self, count: int) -> list[Job]:
        """Return short jobs to warm up the model."""
        return self.jobs(["a"] * count)

    def jobs(self, texts: Sequence[str], alternatives: int = 0) -> list[Job]:
        """Tokenize texts that are not blank.

        Args:
            texts: Source texts.
            alternatives: Number of alternative translations besides the best one; beam search returns at most one per
                beam.

        Raises:
            Refusal: A text has too many tokens (status 400).
        """
        jobs = []
        for ids in encode(self.tokenizer, texts, self.max_tokens):
            interval = -(-len(ids) // LENGTH_STEP) * LENGTH_STEP
            options: dict[str, Any] = {
                "max_length": cap_length(self.model.config, interval + EXTRA_LENGTH),
                "num_beams": max(self.beams, alternatives + 1),
                "num_return_sequences": alternatives + 1,
            }
            jobs.append(Job(tuple(ids), tuple(sorted(options.items()))))
        return jobs

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[list[str]]:
        """Return the translations of each text, best first; all jobs must have the same options."""
        inputs = pad(self.tokenizer, jobs, "right")
        output = self.model.generate(**inputs.to(self.model.device), **dict(jobs[0].options))
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        count = len(texts) // len(jobs)
        return [texts[start : start + count] for start in range(0, len(texts), count)]


class Embedder:
    """Engine that computes text embeddings: the last hidden states, averaged over tokens and scaled to unit length.

    Args:
        model: An encoder without a head.
        tokenizer: Its tokenizer.
        max_tokens: Maximum number of tokens of a text; a model may allow fewer.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = cap_length(model.config, max_tokens)

    def warm_up(self, count: int) -> list[Job]:
        """Return short jobs to warm up the model."""
        return self.jobs(["a"] * count)

    def jobs(self, texts: Sequence[str]) -> list[Job]:
        """Tokenize texts.

        Raises:
            Refusal: A text has too many tokens (status 400).
        """
        return [
            Job(tuple(ids), (("interval", len(ids) // LENGTH_STEP),))
            for ids in encode(self.tokenizer, texts, self.max_tokens)
        ]

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[list[float]]:
        """Return an embedding of size `d_model` for each text."""
        inputs = pad(self.tokenizer, jobs, "right").to(self.model.device)
        states = self.model(**inputs).last_hidden_state.float()  # (batch, length, d_model)
        mask = inputs["attention_mask"][..., None]  # (batch, length, 1)
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)  # (batch, d_model)
        vectors: list[list[float]] = torch.nn.functional.normalize(means, dim=-1).tolist()
        return vectors


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Tokenize texts; a text without tokens becomes a single EOS token.

    Raises:
        Refusal: A text has too many tokens (status 400).
    """
    encoded = [list(ids) or [tokenizer.eos_token_id] for ids in (tokenizer(list(texts))["input_ids"] if texts else [])]
    for ids in encoded:
        if len(ids) > max_tokens:
            raise Refusal(400, f"A text has {len(ids):,} tokens, but may have at most {max_tokens:,}. Split it.")
    return encoded


def pad(tokenizer: PreTrainedTokenizerBase, jobs: Sequence[Any], side: str) -> Any:
    """Return the padded `input_ids` and `attention_mask` of jobs, each (batch, length)."""
    rows = {"input_ids": [list(job.input_ids) for job in jobs]}
    return tokenizer.pad(rows, padding_side=side, return_tensors="pt")
