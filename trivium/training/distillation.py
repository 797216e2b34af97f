"""Distillation of the probabilities of a teacher into a smaller student (Hinton et al. 2015)."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.modeling import TriviumForCausalLM
from trivium.modeling.loss import IGNORE_INDEX, shift_left
from trivium.recipe import Recipe, explain_missing_model
from trivium.training.prepared import tokenizer_fingerprint


@dataclass
class Distillation:
    """Loss of a student: its own loss, and its divergence from a teacher.

    Attributes:
        teacher: The teacher, in evaluation mode and without gradients; it is neither trained nor saved.
        weight: Weight of the divergence; the student's own loss has the weight 1 - `weight`.
        temperature: Softmax temperature of both distributions.
    """

    teacher: PreTrainedModel
    weight: float
    temperature: float

    def __post_init__(self) -> None:
        """Put the teacher in evaluation mode, without gradients."""
        self.teacher.eval().requires_grad_(False)

    def __call__(self, student: nn.Module, autocast: AbstractContextManager[Any], **inputs: Any) -> Any:
        """Return the outputs of the student for a batch, with the loss of distillation.

        Args:
            student: The model that is trained.
            autocast: Context for the teacher's mixed precision; the student has its own.
            **inputs: Inputs of both models, with `labels` and, optionally, `num_items_in_batch`.
        """
        outputs = student(**inputs)
        with torch.no_grad(), autocast:
            teacher_logits = self.teacher(**inputs).logits
        labels = inputs["labels"]
        if isinstance(self.teacher, TriviumForCausalLM):
            labels = shift_left(labels)
        divergence = teacher_divergence(
            outputs.logits, teacher_logits, labels, self.temperature, inputs.get("num_items_in_batch")
        )
        outputs.loss = (1 - self.weight) * outputs.loss + self.weight * divergence
        return outputs


def teacher_divergence(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over labeled tokens.

    The factor T^2 keeps the size of the gradient independent of the temperature T (Hinton et al. 2015, section 2).

    Args:
        logits: (..., vocabulary), of the student.
        teacher_logits: (..., vocabulary), of the teacher.
        labels: (...), aligned with the logits, with -100 for tokens to ignore.
        temperature: Softmax temperature T of both distributions.
        num_items_in_batch: Number of labeled tokens in the whole batch, if this is a part of it.

    Returns:
        A scalar; 0 if there are no labeled tokens.
    """
    is_labeled = labels != IGNORE_INDEX
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = (
        (values[is_labeled].to(dtype) / temperature).log_softmax(dim=-1) for values in (teacher_logits, logits)
    )  # (tokens, vocabulary)
    total = temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    count = is_labeled.sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def load_distillation(
    recipe: Recipe, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Distillation | None:
    """Load the teacher of a recipe; return None if it has none.

    Raises:
        ValueError: The teacher is a model of another class, or has another tokenizer or vocabulary than the student.
    """
    fields, options = recipe.distillation, {"trust_remote_code": False}
    if fields.teacher is None:
        return None
    with explain_missing_model("distillation.teacher", fields.teacher):
        config = TriviumConfig.from_pretrained(fields.teacher)
    name = type(student).__name__
    found = (config.architectures or ["model of unknown class"])[0]
    if found != name:
        raise ValueError(
            f"distillation.teacher is {fields.teacher}, which holds a {found}, but must hold a {name}, like the "
            "student. Train the teacher for the same task."
        )
    own = AutoTokenizer.from_pretrained(fields.teacher, **options)
    sizes = [(model.vocab_size, model.target_vocab_size) for model in (config, student.config)]
    if tokenizer_fingerprint(own) != tokenizer_fingerprint(tokenizer) or sizes[0] != sizes[1]:
        raise ValueError(
            f"distillation.teacher is {fields.teacher}, whose tokenizer differs from the student's (vocabularies of "
            f"{sizes[0][1]} and {sizes[1][1]} tokens), but both must predict the same tokens. Without init_from and "
            "data.prepared, the student has the teacher's tokenizer."
        )
    teacher = type(student).from_pretrained(fields.teacher, config=config)
    return Distillation(teacher, fields.weight, fields.temperature)
