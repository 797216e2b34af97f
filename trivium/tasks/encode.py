"""Encode text as model inputs for each task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
)

from trivium.configuration import TriviumConfig
from trivium.data.packing import STRATEGIES, pack
from trivium.modeling.loss import IGNORE_INDEX
from trivium.tasks.answers import encode_answers
from trivium.tasks.label_facts import encode_label
from trivium.tasks.noise import NOISES
from trivium.tasks.tags import align_words, encode_tags

Batch = dict[str, list[Any]]


@dataclass
class InputArguments:
    """Encoding of text as model inputs: the `inputs:` section of a recipe.

    Attributes:
        max_length: Maximum number of tokens per text; longer texts are truncated. None for `max_position_embeddings`.
        max_tokens: Maximum number of tokens per batch, device and step, in batches of rows of similar length, which
            replace batches of `training.per_device_train_batch_size` rows (see `trivium.data.token_batches`). None for
            batches with that fixed number of rows.
        buffer_size: Number of rows to buffer for token batches of streamed data.
        packing: For `causal-lm`: pack texts into rows of `max_length` tokens instead of padding them. Texts in a row
            do not attend to each other; long texts continue in another row instead of being truncated.
        packing_strategy: "concatenate": join the texts of a batch of rows and cut the result, with hardly any padding;
            "best-fit": split only texts that are longer than a row (see `trivium.data.packing`).
        prompt: For `completion`: template of the prompt that the target completes, in which "{source}" is replaced by
            the source.
        stride: For `question-answering`: number of tokens that consecutive windows of a long context share;
            None selects 64, but at most half of the tokens that the question leaves for the context.
        noise: For `denoising`: "infilling", as in BART, or "spans", as in T5 (see `trivium.tasks.noise`).
        noise_density: For `denoising`: fraction of tokens that are masked.
        mean_span: For `denoising`: mean number of tokens in a masked span.
        mlm_probability: For `masked-lm`: fraction of tokens that are selected for prediction.
        whole_word_mask: For `masked-lm`: mask all tokens of a word together.
    """

    max_length: int | None = None
    max_tokens: int | None = None
    buffer_size: int = 20_000
    packing: bool = False
    packing_strategy: str = "concatenate"
    prompt: str = "{source}"
    stride: int | None = None
    noise: str = "infilling"
    noise_density: float = 0.3
    mean_span: float = 3.0
    mlm_probability: float = 0.15
    whole_word_mask: bool = False

    def __post_init__(self) -> None:
        """Check the values of the fields.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"inputs.max_length is {self.max_length}, but must be at least 2, or null.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"inputs.max_tokens is {self.max_tokens}, but must be at least 1, or null.")
        if self.buffer_size < 1:
            raise ValueError(f"inputs.buffer_size is {self.buffer_size}, but must be at least 1.")
        if self.packing_strategy not in STRATEGIES:
            raise ValueError(
                f"inputs.packing_strategy is {self.packing_strategy!r}, but must be one of {', '.join(STRATEGIES)}."
            )
        if self.stride is not None and self.stride < 0:
            raise ValueError(f"inputs.stride is {self.stride}, but must be at least 0, or null.")
        if self.noise not in NOISES:
            raise ValueError(f"inputs.noise is {self.noise!r}, but must be one of {', '.join(NOISES)}.")
        if not 0 < self.noise_density < 1:
            raise ValueError(f"inputs.noise_density is {self.noise_density}, but must be above 0 and below 1.")
        if self.mean_span < 1:
            raise ValueError(f"inputs.mean_span is {self.mean_span}, but must be at least 1.")
        if "{source}" not in self.prompt:
            raise ValueError(f"inputs.prompt is {self.prompt!r}, but must contain {{source}}.")
        if not 0 < self.mlm_probability <= 1:
            raise ValueError(f"inputs.mlm_probability is {self.mlm_probability}, but must be above 0 and at most 1.")


def max_length_of(config: TriviumConfig, inputs: InputArguments) -> int:
    """Return the number of tokens to which texts are truncated."""
    return inputs.max_length or config.max_position_embeddings


def encode_pairs(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode sentence pairs: sources as `input_ids`, targets as `labels`."""
    max_length = max_length_of(config, inputs)
    encoded = tokenizer(batch["source"], text_target=batch["target"], truncation=True, max_length=max_length)
    encoded["length"] = [max(map(len, pair)) for pair in zip(encoded["input_ids"], encoded["labels"], strict=True)]
    return encoded


def encode_documents(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode documents as `input_ids`, and the first reference of each as `labels`."""
    pairs = {"source": batch["document"], "target": [references[0] for references in batch["references"]]}
    return encode_pairs(pairs, tokenizer, config, inputs)


def encode_completions(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode prompts followed by their completions; the labels ignore the prompts."""
    prompts = tokenizer(prompts_of(batch["source"], inputs))["input_ids"]
    targets = tokenizer(batch["target"], add_special_tokens=False)["input_ids"]
    max_length = max_length_of(config, inputs)
    encoded: Batch = {"input_ids": [], "labels": [], "length": []}
    for prompt, target in zip(prompts, targets, strict=True):
        completion = [*target, tokenizer.eos_token_id]
        encoded["input_ids"].append([*prompt, *completion][:max_length])
        encoded["labels"].append([*[IGNORE_INDEX] * len(prompt), *completion][:max_length])
        encoded["length"].append(len(encoded["input_ids"][-1]))
    return encoded


def prompts_of(sources: Iterable[str], inputs: InputArguments) -> list[str]:
    """Return the prompt for each source, from the template `inputs.prompt`."""
    return [inputs.prompt.replace("{source}", source) for source in sources]


def documents_of(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenize texts without truncation, with `</s>` at the end, and `<s>` at the start if the tokenizer adds it."""
    bos = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [[*bos, *text, tokenizer.eos_token_id] for text in ids]


def encode_texts(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode texts for causal language modeling; the labels equal the inputs, because the model shifts them."""
    documents, max_length = documents_of(batch["text"], tokenizer), max_length_of(config, inputs)
    if inputs.packing:
        return pack(documents, max_length, tokenizer.pad_token_id, inputs.packing_strategy)
    truncated = [document[:max_length] for document in documents]
    return {"input_ids": truncated, "labels": truncated, "length": [len(document) for document in truncated]}


def windows_of_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> list[dict[str, Any]]:
    """Split texts into windows of `max_length` tokens, in which each token but the first is predicted exactly once.

    The labels are already shifted.
    """
    max_length = max_length_of(config, inputs)
    windows = []
    for document in documents_of([row["text"] for row in rows], tokenizer):
        for start in range(0, len(document) - 1, max_length):
            window = document[start : start + max_length + 1]
            windows.append({"input_ids": window[:-1], "labels": window[1:]})
    return windows


def encode_for_masking(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode texts for masked language modeling; the collator masks them."""
    encoded = tokenizer(
        batch["text"],
        truncation=True,
        max_length=max_length_of(config, inputs),
        return_special_tokens_mask=True,
        return_offsets_mapping=inputs.whole_word_mask,  # The collator finds word boundaries by gaps in the offsets.
    )
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded


def encode_labeled(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode texts and their labels: class indices, multi-hot vectors, or numbers for regression."""
    encoded = tokenizer(batch["text"], truncation=True, max_length=max_length_of(config, inputs))
    encoded["labels"] = [encode_label(label, config) for label in batch["label"]]
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded


def encode_tagged(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode words and their tags; the label of a word's first token is the word's tag."""
    encoded, alignments = align_words(batch["words"], tokenizer, max_length_of(config, inputs))
    encoded["labels"] = [
        encode_tags(tags, alignment, config) for tags, alignment in zip(batch["tags"], alignments, strict=True)
    ]
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded


def encode_questions(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode questions with windows of their contexts; each window has the positions of the answer."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    max_length = max_length_of(config, inputs)
    examples = [example for row in rows for example in encode_answers(row, tokenizer, max_length, inputs.stride)]
    return {name: [example[name] for example in examples] for name in examples[0]}


def encode_for_denoising(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode texts as sources and targets of an encoder-decoder; the collator corrupts them."""
    return encode_pairs({"source": batch["text"], "target": batch["text"]}, tokenizer, config, inputs)


def encode_for_splitting(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig, inputs: InputArguments
) -> Batch:
    """Encode texts of an encoder-decoder or a decoder-only model; the collator splits them at random places."""
    encode = encode_for_denoising if config.is_encoder_decoder else encode_texts
    return encode(batch, tokenizer, config, inputs)
