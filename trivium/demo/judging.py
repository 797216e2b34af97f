"""Run encoder-only models: fill masks, classify texts, tag words and find answers."""

import re

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .generating import Named
from .introspect import Inputs, UnfitText, max_length

MAX_FILLINGS = 8  # per mask
MAX_LABELS = 20
MAX_ANSWERS = 5
MAX_ANSWER_LENGTH = 30  # tokens


@torch.inference_mode()
def fill_masks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> list[list[Named]]:
    """Return the most probable tokens and their probabilities for each mask of a text, in order.

    Raises:
        UnfitText: The text has no mask.
    """
    positions = [i for i, token_id in enumerate(inputs.input_ids) if token_id == tokenizer.mask_token_id]
    if not positions:
        raise UnfitText(f"The text has no mask. Replace a word with {tokenizer.mask_token}.")
    logits = model(**inputs.tensors(model)).logits[0, positions].float()
    best = logits.softmax(dim=-1).topk(min(MAX_FILLINGS, logits.shape[-1]))
    return [
        [(tokenizer.decode([token_id]), probability) for token_id, probability in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def classify(model: PreTrainedModel, inputs: Inputs) -> list[Named]:
    """Return the labels of a text with their probabilities, best first; for regression, the predicted value."""
    logits = model(**inputs.tensors(model)).logits[0].float()
    kind = model.config.problem_type
    if is_regression(model):
        scores = logits
    else:  # multi-label: independent probabilities
        scores = logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(dim=-1)
    best = scores.topk(min(MAX_LABELS, len(scores)))
    return [
        (model.config.id2label[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def tag(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[str, str, float]]:
    """Split a text at spaces, and return its words with their tags and the tags' probabilities.

    A word has the tag of its first token, as in training.
    """
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    probabilities = model(**encoded.to(model.device)).logits[0].float().softmax(dim=-1)
    tagged = []
    for word in re.finditer(r"\S+", text):
        places = (i for i, (start, end) in enumerate(offsets) if start < end and word.start() < end <= word.end())
        if (first := next(places, None)) is not None:
            probability, label = probabilities[first].max(dim=-1)
            tagged.append((word[0], model.config.id2label[label.item()], probability.item()))
    return tagged


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, context: str) -> list[Named]:
    """Return the most probable spans of a text as answers to a question, best first.

    The probability of a span is the product of the probabilities of its first and last token.

    Raises:
        UnfitText: The text is empty, or too long for the model together with the question.
    """
    if not context.strip():
        raise UnfitText("The text is empty. Enter the text that has the answer.")
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    length, limit = encoded["input_ids"].shape[1], max_length(model.config)
    if length > limit:
        raise UnfitText(f"Question and text have {length:,} tokens, but at most {limit:,} are allowed. Shorten them.")
    offsets = encoded.pop("offset_mapping")[0].tolist()
    is_context = torch.tensor(
        [part == 1 and start < end for part, (start, end) in zip(encoded.sequence_ids(0), offsets, strict=True)]
    )
    outputs = model(**encoded.to(model.device))
    starts, ends = (
        logits[0].float().cpu().masked_fill(~is_context, -torch.inf).softmax(dim=-1)
        for logits in (outputs.start_logits, outputs.end_logits)
    )
    scores = (starts[:, None] * ends).triu().tril(MAX_ANSWER_LENGTH - 1)
    best = scores.flatten().topk(min(MAX_ANSWERS, int(is_context.sum())))
    spans = [divmod(index, length) for index in best.indices.tolist()]
    return [
        (context[offsets[first][0] : offsets[last][1]], score)
        for (first, last), score in zip(spans, best.values.tolist(), strict=True)
    ]


def is_regression(model: PreTrainedModel) -> bool:
    """Return True if a classifier predicts a number instead of probabilities."""
    kind = model.config.problem_type
    return bool(kind == "regression" or (kind is None and model.config.num_labels == 1))
