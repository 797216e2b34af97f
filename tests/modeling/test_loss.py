"""Test label smoothing (section 5.4): it ignores padding and micro-batching, and applies in training only.

Next-token prediction and the three problem types of sequence classification are tested as well.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tiny import copying_batch, tiny_model
from torch.nn import functional as F

from trivium import TriviumForSequenceClassification
from trivium.modeling.loss import classification_loss, label_smoothed_cross_entropy, shift_left

VOCABULARY = 11


def random_batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(VOCABULARY, (3, 5))
    labels[0, 3:] = labels[1, 1:] = -100
    return torch.randn(3, 5, VOCABULARY, dtype=dtype) * 3, labels


def reference_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """Compute the cross entropy against (1 - e) * one-hot + e / V in pure Python, averaged over real tokens."""
    total, count = 0.0, 0
    for row, label in zip(logits.flatten(0, -2).tolist(), labels.flatten().tolist(), strict=True):
        if label == -100:
            continue
        log_normalizer = math.log(sum(math.exp(logit) for logit in row))
        for token, logit in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing) * (token == label)
            total -= target * (logit - log_normalizer)
        count += 1
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_matches_formula(smoothing: float) -> None:
    logits, labels = random_batch()
    loss = label_smoothed_cross_entropy(logits, labels, smoothing).item()
    assert loss == pytest.approx(reference_loss(logits, labels, smoothing), rel=1e-12)
    reference = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    assert loss == pytest.approx(reference.item(), rel=1e-12)


def test_ignored_tokens_get_no_gradient() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    label_smoothed_cross_entropy(logits, labels, 0.1).backward()
    assert logits.grad is not None
    assert logits.grad[labels == -100].eq(0).all()
    assert logits.grad[labels != -100].ne(0).all()


def test_loss_without_labels_is_zero() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    loss = label_smoothed_cross_entropy(logits, torch.full_like(labels, -100), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("as_tensor", [True, False])
def test_micro_batch_losses_sum_to_batch_loss(as_tensor: bool) -> None:
    """The rows have 3, 1 and 5 real tokens, so averaging the mean losses of the rows would be wrong."""
    logits, labels = random_batch()
    count = (labels != -100).sum()
    whole = label_smoothed_cross_entropy(logits, labels, 0.1)
    parts = sum(
        label_smoothed_cross_entropy(logits[[i]], labels[[i]], 0.1, count if as_tensor else int(count))
        for i in range(len(labels))
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    averages = sum(label_smoothed_cross_entropy(logits[[i]], labels[[i]], 0.1) for i in range(len(labels))) / 3
    assert not torch.allclose(torch.as_tensor(averages), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = random_batch(dtype)
    loss = label_smoothed_cross_entropy(logits, labels, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference_loss(logits, labels, 0.1), rel=1e-5)


def test_model_smooths_labels_only_in_training() -> None:
    model = tiny_model(label_smoothing=0.3)
    batch = copying_batch(sentences=4)
    for training, smoothing in ((True, 0.3), (False, 0.0)):
        outputs = model.train(training)(**batch)
        assert outputs.loss.item() == pytest.approx(
            reference_loss(outputs.logits, batch["labels"], smoothing), rel=1e-10
        )


def test_micro_batch_gradients_sum_to_full_batch() -> None:
    """Accumulate gradients as the Trainer does, with the `num_items_in_batch` of the full batch."""
    model = tiny_model().train()
    batch = copying_batch(sentences=4)
    model(**batch).loss.backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    count = (batch["labels"] != -100).sum()
    for i in range(4):
        part = {name: tensor[[i]] for name, tensor in batch.items()}
        model(**part, num_items_in_batch=count).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-9, atol=1e-12)


def test_shift_left() -> None:
    """Each position gets the next label as its target, -100 stays -100, and the last position gets -100."""
    labels = torch.tensor([[5, 6, 7], [-100, 8, -100]])
    assert shift_left(labels).tolist() == [[6, 7, -100], [8, -100, -100]]
    assert labels.tolist() == [[5, 6, 7], [-100, 8, -100]]


# --- Sequence classification ---

TEXTS, CLASSES = 6, 4


class Problem(NamedTuple):
    """A problem type, its number of classes, a generator of random labels, and torch's loss function."""

    problem_type: str
    classes: int
    labels: Callable[[], torch.Tensor]
    objective: Callable[..., torch.Tensor]

    def logits(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(TEXTS, self.classes, dtype=dtype) * 3


PROBLEMS = [
    Problem("single_label_classification", CLASSES, lambda: torch.randint(CLASSES, (TEXTS,)), F.cross_entropy),
    Problem(
        "multi_label_classification",
        CLASSES,
        lambda: torch.randint(2, (TEXTS, CLASSES)).double(),
        F.binary_cross_entropy_with_logits,
    ),
    Problem("regression", 1, lambda: torch.randn(TEXTS, 1).double(), F.mse_loss),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.problem_type)


@every_problem
def test_classification_loss_matches_torch(problem: Problem) -> None:
    """Test with the problem type configured, and inferred from the labels and the number of classes."""
    logits, labels = problem.logits(), problem.labels()
    expected = problem.objective(logits, labels)
    for problem_type in (problem.problem_type, None):
        loss = classification_loss(logits, labels, problem_type)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("labels", [torch.arange(TEXTS), torch.arange(TEXTS) / 2], ids=["whole", "fractions"])
def test_single_class_is_regression(labels: torch.Tensor) -> None:
    """With a single class, one label per text, float or integer, selects regression."""
    logits = torch.randn(TEXTS, 1).double()
    loss = classification_loss(logits, labels)
    torch.testing.assert_close(loss, (logits[:, 0] - labels).square().mean(), rtol=1e-12, atol=0)


def test_configured_problem_type_wins_over_inferred() -> None:
    """An explicit type overrides the inferred one: floats may be regression, and integers multi-label."""
    logits, labels = torch.randn(TEXTS, CLASSES).double(), torch.randint(2, (TEXTS, CLASSES))
    regression = classification_loss(logits, labels.double(), "regression")
    torch.testing.assert_close(regression, F.mse_loss(logits, labels.double()), rtol=1e-12, atol=0)
    several = classification_loss(logits, labels, "multi_label_classification")
    expected = F.binary_cross_entropy_with_logits(logits, labels.double())
    torch.testing.assert_close(several, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("as_tensor", [True, False])
@every_problem
def test_micro_batches_of_classifier_sum_to_batch(problem: Problem, as_tensor: bool) -> None:
    """Split six texts into one and five, so that averaging the mean losses of the parts would be wrong."""
    logits, labels = problem.logits(), problem.labels()
    count = torch.tensor(labels.numel()) if as_tensor else labels.numel()
    whole = classification_loss(logits, labels)
    cuts = slice(0, 1), slice(1, None)
    parts = sum(classification_loss(logits[cut], labels[cut], num_items_in_batch=count) for cut in cuts)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    averages = sum(classification_loss(logits[cut], labels[cut]) for cut in cuts) / 2
    assert not torch.allclose(torch.as_tensor(averages), whole)


@every_problem
def test_half_precision_scores_are_summed_in_float32(problem: Problem) -> None:
    logits, labels = problem.logits(torch.bfloat16), problem.labels()
    loss = classification_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(problem.objective(logits.double(), labels).item(), rel=1e-5)


@pytest.mark.parametrize("labels", [torch.zeros(TEXTS), torch.zeros(TEXTS, CLASSES)], ids=["one", "several"])
def test_unknown_problem_type_is_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"problem_type.*'ranking'.*'single_label.*', 'multi.*'reg"):
        classification_loss(torch.zeros(TEXTS, CLASSES), labels, "ranking")


def test_class_labels_are_smoothed_like_tokens() -> None:
    problem = PROBLEMS[0]
    logits, labels = problem.logits(), problem.labels()
    expected = reference_loss(logits, labels, 0.3)
    for loss in (
        label_smoothed_cross_entropy(logits, labels, 0.3),
        classification_loss(logits, labels, label_smoothing=0.3),
        F.cross_entropy(logits, labels, label_smoothing=0.3),
    ):
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_classifier_smooths_only_in_training() -> None:
    model = tiny_model(TriviumForSequenceClassification, decoder_layers=0, num_labels=CLASSES, label_smoothing=0.3)
    inputs = {"input_ids": copying_batch(TEXTS)["input_ids"], "labels": torch.randint(CLASSES, (TEXTS,))}
    for training, smoothing in ((True, 0.3), (False, 0.0)):
        outputs = model.train(training)(**inputs)
        assert outputs.loss.item() == pytest.approx(
            reference_loss(outputs.logits, inputs["labels"], smoothing), rel=1e-10
        )
