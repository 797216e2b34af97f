"""Test the fused projection and loss: loss and gradients match, and the full logits are never materialized."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import copying_batch, random_ids, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM
from trivium.modeling import loss as objectives
from trivium.modeling.loss import label_smoothed_cross_entropy, projected_cross_entropy
from trivium.training.trainer import RunTrainer

VOCABULARY, WIDTH = 37, 6
MODELS = [
    (TriviumForConditionalGeneration, {}),
    (TriviumForMaskedLM, {"decoder_layers": 0}),
    (TriviumForCausalLM, {"encoder_layers": 0}),
]
every_model = pytest.mark.parametrize(("model_class", "shape"), MODELS, ids=["whole", "encoder", "decoder"])


def problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a two-layer head, hidden states that require gradients, and 20 labels, 11 of them -100."""
    head = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, VOCABULARY)).to(dtype)
    states = torch.randn(4, 5, WIDTH, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (4, 5))
    labels[0, 3:] = labels[1, 1:] = labels[2] = -100
    return head, states, labels


def differentiate(loss: torch.Tensor, head: nn.Module, states: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [states, *head.parameters()]))


@pytest.mark.parametrize("count", [None, 50])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("at_once", "in_float32"), [(2**28, 2**23), (2**28, 2 * VOCABULARY), (4 * VOCABULARY, 1)])
def test_matches_loss_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, at_once: int, in_float32: int, smoothing: float, count: int | None
) -> None:
    """Compare loss and gradients for one chunk and for several, with the loss scaled as by a GradScaler."""
    monkeypatch.setattr(objectives, "MAX_LOGITS", at_once)
    monkeypatch.setattr(objectives, "MAX_FLOAT32_LOGITS", in_float32)
    head, states, labels = problem()
    expected = label_smoothed_cross_entropy(head(states), labels, smoothing, count)
    loss = projected_cross_entropy(states, head, labels, VOCABULARY, smoothing, count)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for actual, reference in zip(
        differentiate(8 * loss, head, states), differentiate(8 * expected, head, states), strict=True
    ):
        torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-14)
    with torch.no_grad():
        assert projected_cross_entropy(states, head, labels, VOCABULARY, smoothing, count).item() == loss.item()


def test_loss_without_labels_is_zero_and_reaches_all() -> None:
    """Every parameter must get a gradient even without labels, because DistributedDataParallel waits for it."""
    head, states, labels = problem()
    loss = projected_cross_entropy(states, head, torch.full_like(labels, -100), VOCABULARY, 0.1)
    assert loss.item() == 0
    assert all(gradient.eq(0).all() for gradient in differentiate(loss, head, states))


def test_half_precision_is_summed_in_float32() -> None:
    head, states, labels = problem(torch.bfloat16)
    loss = projected_cross_entropy(states, head, labels, VOCABULARY, 0.1)
    expected = label_smoothed_cross_entropy(head(states), labels, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert [gradient.dtype for gradient in differentiate(loss, head, states)] == [torch.bfloat16] * 5


def test_second_derivative_is_refused() -> None:
    head, states, labels = problem()
    loss = projected_cross_entropy(states, head, labels, VOCABULARY)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified.*inplace operation"):
        loss.backward()


class Sizes(TorchDispatchMode):
    """Record the number of elements of every created tensor, except for views and in-place results."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors, arguments = (
            [tensor for tensor in tree_iter(tree) if isinstance(tensor, torch.Tensor)]
            for tree in (result, (args, kwargs))
        )
        storages = {tensor.untyped_storage().data_ptr() for tensor in arguments}
        self.made += [tensor.numel() for tensor in tensors if tensor.untyped_storage().data_ptr() not in storages]
        return result


def test_logits_of_real_tokens_exist_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the tensor sizes in the forward and the backward pass; chunks of two rows are computed in float32."""
    monkeypatch.setattr(objectives, "MAX_FLOAT32_LOGITS", 2 * VOCABULARY)
    head, states, labels = problem()
    with Sizes() as sizes:
        projected_cross_entropy(states, head, labels, VOCABULARY, 0.1).backward()
    assert (labels != -100).sum() == 9
    assert sizes.made.count(9 * VOCABULARY) == 1
    # The only other large tensors are the weight and its gradient, with 8 * VOCABULARY elements.
    assert set(sizes.made) & {rows * VOCABULARY for rows in range(3, 21)} <= {8 * VOCABULARY, 9 * VOCABULARY}
    with Sizes() as sizes:
        label_smoothed_cross_entropy(head(states), labels, 0.1).backward()
    # The plain loss allocates several tensors of this size; the chunked loss allocates none.
    assert sizes.made.count(20 * VOCABULARY) > 2


@pytest.mark.parametrize("train", [True, False])
@every_model
def test_model_skips_logits_if_asked_to(model_class: Any, shape: dict[str, Any], train: bool) -> None:
    """`skip_logits` must work in training and evaluation mode, and have no effect without labels."""
    model = tiny_model(model_class, label_smoothing=0.2, **shape).train(train)
    batch = copying_batch(sentences=4)
    # The labels refer to positions of the input text, some of which have none.
    if model_class is not TriviumForConditionalGeneration:
        batch["input_ids"], batch["attention_mask"] = random_ids(4, 9), torch.ones(4, 9, dtype=torch.long)
    gradients = []
    for skip in (True, False):
        model.zero_grad()
        outputs = model(**batch, skip_logits=skip, num_items_in_batch=7)
        assert (outputs.logits is None) == skip
        outputs.loss.backward()
        gradients.append((outputs.loss, {name: weight.grad for name, weight in model.named_parameters()}))
    (fused_loss, fused_gradients), (expected_loss, expected_gradients) = gradients
    torch.testing.assert_close(fused_loss, expected_loss, rtol=1e-12, atol=0)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert model(**batch).logits is not None
    del batch["labels"]
    if model_class is TriviumForConditionalGeneration:
        batch["decoder_input_ids"] = random_ids(4, 5)
    assert model(**batch, skip_logits=True).logits is not None


@pytest.mark.parametrize(
    ("model_class", "shape"),
    [*(pytest.param(*each, marks=pytest.mark.slow) for each in MODELS[:-1]), MODELS[-1]],
    ids=["whole", "encoder", "decoder"],
)
def test_compiled_graph_does_not_depend_on_labels(model_class: Any, shape: dict[str, Any]) -> None:
    """Varying the number of labeled tokens must not cause recompilation."""
    model = tiny_model(model_class, **shape).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ignored in (1, 3):
        batch = {"input_ids": random_ids(2, 6), "labels": random_ids(2, 6)}
        batch["labels"][:, -ignored:] = -100
        torch.testing.assert_close(compiled(**batch, skip_logits=True).loss, model(**batch).loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("own_smoothing", [0.0, 0.1])
@every_model
def test_run_trainer_computes_no_unused_logits(
    model_class: Any, shape: dict[str, Any], own_smoothing: float, tmp_path: Path
) -> None:
    """`RunTrainer` must skip logits unless it smooths labels itself; losses must equal those of a plain Trainer."""
    names = ["input_ids", "labels"]
    if model_class is TriviumForConditionalGeneration:
        # With smoothing, the Trainer removes the labels from the inputs, so the collator adds the decoder's input.
        names.append("decoder_input_ids")
    texts = [{name: random_ids(1, 7)[0] for name in names} for _ in range(8)]
    losses, untrained = {}, tiny_model(model_class, **shape).float()
    for trainer_class in (RunTrainer, Seq2SeqTrainer):
        model = deepcopy(untrained)
        made: list[bool] = []
        model.register_forward_hook(lambda *said, made=made: made.append(said[-1].get("logits") is not None))
        args = Seq2SeqTrainingArguments(
            str(tmp_path), max_steps=2, use_cpu=True, report_to="none", label_smoothing_factor=own_smoothing
        )
        trainer = trainer_class(model, args, train_dataset=texts, eval_dataset=texts)
        assert trainer.train().training_loss > 0
        losses[trainer_class] = trainer.evaluate()["eval_loss"]
        assert made == [trainer_class is Seq2SeqTrainer or own_smoothing > 0] * 3
    assert losses[RunTrainer] == pytest.approx(losses[Seq2SeqTrainer], rel=1e-5)
