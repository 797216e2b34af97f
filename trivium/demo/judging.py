"""What an encoder-only model says of a text: words for its masks, or its labels."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .generating import Named
from .introspect import Inputs, UnfitText

FILLINGS = 8  # for each mask
LABELS = 20  # at most


@torch.inference_mode()
def fill_masks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> list[list[Named]]:
    """For each mask of a text, in their order, the likeliest tokens and their probabilities.

    Raises:
        UnfitText: It has no mask.
    """
    places = [i for i, token_id in enumerate(inputs.input_ids) if token_id == tokenizer.mask_token_id]
    if not places:
        raise UnfitText(f"There is nothing to fill: write {tokenizer.mask_token} for a word of the text.")
    logits = model(**inputs.tensors(model)).logits[0, places].float()
    best = logits.softmax(dim=-1).topk(min(FILLINGS, logits.shape[-1]))
    return [
        [(tokenizer.decode([token_id]), probability) for token_id, probability in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def classify(model: PreTrainedModel, inputs: Inputs) -> list[Named]:
    """The labels of a text, best first, with their probabilities; of a regression, the number itself."""
    logits = model(**inputs.tensors(model)).logits[0].float()
    kind = model.config.problem_type
    if is_regression(model):
        scores = logits
    else:  # of several labels that can hold at once, each has a probability of its own
        scores = logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(dim=-1)
    best = scores.topk(min(LABELS, len(scores)))
    return [
        (model.config.id2label[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def is_regression(model: PreTrainedModel) -> bool:
    """Whether a classifier gives a number, and no probabilities."""
    kind = model.config.problem_type
    return bool(kind == "regression" or (kind is None and model.config.num_labels == 1))
