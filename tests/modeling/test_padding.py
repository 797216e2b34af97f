"""Test unpadding: outputs at real tokens, and all gradients, equal those of the padded layout."""

from typing import Any

import pytest
import torch
from tiny import EXACT, PAD, all_variants, mask_of, random_ids, tiny_model
from torch import nn

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
)
from trivium.modeling.loss import mask_after_last_label
from trivium.modeling.padding import RealTokens

LENGTHS, TARGET_LENGTHS = [5, 9, 2, 7], [6, 3, 8, 1]
WAYS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (TriviumForConditionalGeneration, {}),
    (TriviumForConditionalGeneration, {"decoder_vocab_size": 29}),
    (TriviumForMaskedLM, {"decoder_layers": 0, "type_vocab_size": 2}),
    (TriviumForCausalLM, {"encoder_layers": 0}),
]
every_way = pytest.mark.parametrize(
    ("model_class", "shape"), WAYS, ids=["one vocabulary", "two vocabularies", "encoder-only", "decoder-only"]
)


def padded_batch(model_class: type[nn.Module], side: str = "right") -> dict[str, torch.Tensor]:
    """Return a batch with rows of lengths `LENGTHS`; some labels inside the rows are ignored."""
    mask = mask_of(LENGTHS, side)
    ids = random_ids(*mask.shape).masked_fill(mask == 0, PAD)
    labels = ids.masked_fill((mask == 0) | (torch.rand(ids.shape) < 0.2), -100)
    if model_class is TriviumForConditionalGeneration:
        target = mask_of(TARGET_LENGTHS)
        labels = random_ids(*target.shape, vocab_size=29).masked_fill(target == 0, -100)
        labels[2, 1] = -100  # inside the row, so the token still counts as real
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model: nn.Module, **batch: Any) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients of a training step."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: weight.grad.clone() for name, weight in model.named_parameters()}}


def shapes_in_layers(model: nn.Module) -> list[torch.Size]:
    """Return a list to which hooks append the input shapes of the feed-forward networks."""
    shapes: list[torch.Size] = []
    for name, module in model.named_modules():
        if name.endswith("feed_forward"):
            module.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    return shapes


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_way
def test_unpadded_loss_and_gradients_match_padded(
    model_class: type[nn.Module], shape: dict[str, Any], attention: str, side: str
) -> None:
    model = tiny_model(model_class, attn_implementation=attention, label_smoothing=0.1, **shape).train()
    batch = padded_batch(model_class, side)
    unpadded, padded = (loss_and_gradients(model, **batch, skip_logits=skip) for skip in (True, False))
    for name, gradient in padded.items():
        torch.testing.assert_close(unpadded[name], gradient, **EXACT, msg=name)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_way
def test_layers_get_no_padding(model_class: type[nn.Module], shape: dict[str, Any], attention: str, side: str) -> None:
    if model_class is TriviumForCausalLM:
        side = "right"  # Left padding has a separate test below.
    model = tiny_model(model_class, attn_implementation=attention, **shape).train()
    batch = padded_batch(model_class, side)
    shapes = shapes_in_layers(model)
    model(**batch, skip_logits=True)
    assert {len(tensor_shape) for tensor_shape in shapes} == {2}  # (tokens, d_model)
    both = {sum(LENGTHS), sum(TARGET_LENGTHS)}
    assert {tensor_shape[0] for tensor_shape in shapes} == (
        both if model_class is TriviumForConditionalGeneration else {sum(LENGTHS)}
    )
    shapes.clear()
    model(**batch)
    assert {len(tensor_shape) for tensor_shape in shapes} == {3}


def test_left_padding_that_predicts_a_token_is_kept() -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0).train()
    shapes = shapes_in_layers(model)
    model(**padded_batch(TriviumForCausalLM, "left"), skip_logits=True)
    assert {len(tensor_shape) for tensor_shape in shapes} == {3}


@all_variants
def test_unpadding_for_every_layer_variant(variant: dict[str, Any]) -> None:
    for model_class, shape in WAYS:
        model = tiny_model(model_class, attn_implementation="sdpa", **shape, **variant).train()
        batch = padded_batch(model_class)
        unpadded, padded = (loss_and_gradients(model, **batch, skip_logits=skip) for skip in (True, False))
        for name, gradient in padded.items():
            torch.testing.assert_close(unpadded[name], gradient, **EXACT, msg=name)


@every_way
def test_unpadding_with_gradient_checkpointing(model_class: type[nn.Module], shape: dict[str, Any]) -> None:
    model = tiny_model(model_class, **shape).train()
    batch = padded_batch(model_class)
    padded = loss_and_gradients(model, **batch)
    model.activation_checkpointing_enable()
    unpadded = loss_and_gradients(model, **batch, skip_logits=True)
    for name, gradient in padded.items():
        torch.testing.assert_close(unpadded[name], gradient, **EXACT, msg=name)


@pytest.mark.parametrize(
    "optional_inputs",
    [
        {"decoder_attention_mask": mask_of(TARGET_LENGTHS)},
        # Restarting positions, although each row is a single sentence.
        {"decoder_position_ids": torch.arange(8).expand(4, 8) % 3},
        {"encoder_outputs": True},
        {"attention_mask": None},
        {"attention_mask": mask_of(LENGTHS)[:, None, None].expand(4, 1, 1, 9).bool()},
    ],
    ids=["decoder mask", "restarting positions", "encoder outputs", "no mask", "4-D mask"],
)
def test_unpadding_with_optional_inputs(optional_inputs: dict[str, Any]) -> None:
    model = tiny_model(attn_implementation="sdpa").train()
    batch = padded_batch(TriviumForConditionalGeneration)
    if "encoder_outputs" in optional_inputs:
        encoded = model.model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        optional_inputs = {"encoder_outputs": (encoded.last_hidden_state.detach(),)}
    if "decoder_position_ids" in optional_inputs:
        optional_inputs = {**optional_inputs, "decoder_attention_mask": mask_of(TARGET_LENGTHS)}
    batch = {**batch, **optional_inputs}
    losses = [model(**batch, skip_logits=skip).loss for skip in (True, False)]
    torch.testing.assert_close(*losses, **EXACT)


@every_way
def test_hidden_states_keep_row_layout(model_class: type[nn.Module], shape: dict[str, Any]) -> None:
    model = tiny_model(model_class, **shape)
    batch = padded_batch(model_class)
    outputs = model(**batch, skip_logits=True, output_hidden_states=True)
    states = outputs.get("encoder_hidden_states") or outputs.hidden_states
    assert {state.shape for state in states} == {(4, 9, 24)}
    model.config.output_hidden_states = True
    states = model(**batch, skip_logits=True)
    assert {state.shape for state in states.get("encoder_hidden_states") or states.hidden_states} == {(4, 9, 24)}


def test_batch_without_padding_keeps_shape() -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0)
    shapes = shapes_in_layers(model)
    ids = random_ids(2, 5)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, skip_logits=True)
    assert set(shapes) == {(2, 5, 24)}


def test_all_padding_batch_has_no_loss() -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, attn_implementation="sdpa").train()
    ids = torch.full((2, 5), PAD)
    loss = model(input_ids=ids, attention_mask=ids, labels=torch.full_like(ids, -100), skip_logits=True).loss
    loss.backward()
    assert loss == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())


def test_gather_and_scatter_of_tokens() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]])
    tokens = RealTokens(mask)
    states = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(tokens.unpad(states), states[mask.bool()])
    assert torch.equal(tokens.pad(tokens.unpad(states)), states * mask[..., None])
    assert torch.autograd.gradcheck(lambda x: tokens.pad(tokens.unpad(x).sin()), states)
    assert not tokens.is_right_padded
    assert RealTokens(mask_of([2, 3])).is_right_padded


def test_scattered_tensor_is_not_saved_for_backward() -> None:
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    states = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rows = RealTokens(mask_of([2, 3])).pad(states)
    assert kept  # the indices
    assert not any(tensor.is_floating_point() for tensor in kept)
    weights = torch.randn_like(rows)
    (gradient,) = torch.autograd.grad((rows * weights).sum(), states)
    torch.testing.assert_close(gradient, torch.cat((weights[0, :2], weights[1])), rtol=0, atol=0)


def test_tokens_after_last_label_are_skipped() -> None:
    labels = torch.tensor([[5, -100, 6, -100], [-100, -100, -100, -100], [1, 2, 3, 4]])
    assert mask_after_last_label(labels).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_classifier_pools_only_real_tokens(pooling: str, side: str) -> None:
    model = tiny_model(TriviumForSequenceClassification, decoder_layers=0, num_labels=3, classifier_pooling=pooling)
    mask = mask_of(LENGTHS, side)
    ids = random_ids(*mask.shape).masked_fill(mask == 0, PAD)
    single = [model(row[real.bool()][None]).logits for row, real in zip(ids, mask, strict=True)]
    torch.testing.assert_close(model(ids, mask).logits, torch.cat(single), **EXACT)
    assert model(ids, torch.zeros_like(mask)).logits.isfinite().all()
