"""Section 5.4: label smoothing, over real tokens only, in training only, and the same however a batch is cut."""

import math

import pytest
import torch
from tiny import copying_batch, tiny_model
from torch.nn import functional as F

from trivium.modeling.loss import label_smoothed_cross_entropy

VOCABULARY = 11


def random_batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(VOCABULARY, (3, 5))
    labels[0, 3:] = labels[1, 1:] = -100
    return torch.randn(3, 5, VOCABULARY, dtype=dtype) * 3, labels


def by_hand(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """Cross entropy against (1 - e) * one-hot + e / V, in Python's own floats, averaged over real tokens."""
    total, count = 0.0, 0
    for row, label in zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label == -100:
            continue
        log_normaliser = math.log(sum(math.exp(logit) for logit in row))
        for token, logit in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing) * (token == label)
            total -= target * (logit - log_normaliser)
        count += 1
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_formula(smoothing: float) -> None:
    logits, labels = random_batch()
    loss = label_smoothed_cross_entropy(logits, labels, smoothing).item()
    assert loss == pytest.approx(by_hand(logits, labels, smoothing), rel=1e-12)
    reference = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    assert loss == pytest.approx(reference.item(), rel=1e-12)


def test_ignored_tokens_get_no_gradient() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    label_smoothed_cross_entropy(logits, labels, 0.1).backward()
    assert logits.grad is not None
    assert logits.grad[labels == -100].eq(0).all()
    assert logits.grad[labels != -100].ne(0).all()


def test_nothing_to_learn_is_zero() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    loss = label_smoothed_cross_entropy(logits, torch.full_like(labels, -100), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("as_tensor", [True, False])
def test_parts_add_up_to_the_whole(as_tensor: bool) -> None:
    """The rows have 3, 1 and 5 real tokens: an average of averages would be wrong."""
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
    assert loss.item() == pytest.approx(by_hand(logits, labels, 0.1), rel=1e-5)


def test_the_model_smooths_in_training_only() -> None:
    model = tiny_model(label_smoothing=0.3)
    batch = copying_batch(sentences=4)
    for training, smoothing in ((True, 0.3), (False, 0.0)):
        outputs = model.train(training)(**batch)
        assert outputs.loss.item() == pytest.approx(by_hand(outputs.logits, batch["labels"], smoothing), rel=1e-10)


def test_gradients_of_micro_batches_add_up() -> None:
    """1 x N equals N x 1, as the Trainer accumulates them: with `num_items_in_batch` of the whole."""
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
