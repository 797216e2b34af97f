"""Test further PEFT methods: LN tuning, trainable tokens, and methods that need the classifier's layers by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    OFTConfig,
    PeftModel,
    RandLoraConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from tiny import NORM_POSITIONS, random_ids, tiny_model
from torch import nn
from transformers import PreTrainedModel

from trivium import (
    TriviumDecoderForSequenceClassification,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForSequenceClassification,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # PEFT 0.21
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),  # PEFT warns of Trivium's norms, but tunes them
]
EXACT = {"rtol": 0.0, "atol": 1e-9}
SOME: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ia3": (IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "vera": (VeraConfig, SOME),
    "fourierft": (FourierFTConfig, {**SOME, "n_frequency": 8}),
    "hra": (HRAConfig, {**SOME, "r": 4}),
    "randlora": (RandLoraConfig, {**SOME, "r": 4}),
    "loha": (LoHaConfig, SOME),
    "oft": (OFTConfig, {**SOME, "oft_block_size": 4}),
}
LABELS = torch.tensor([0, 1, 1])


def train(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Take a few steps, and return the logits."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(3):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return logits_of(model, ids, labels)


@torch.no_grad()
def logits_of(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, labels=labels).logits


@pytest.mark.parametrize("norm_position", NORM_POSITIONS)
@pytest.mark.parametrize(
    ("model_class", "task", "layers"),
    [
        (TriviumForConditionalGeneration, "SEQ_2_SEQ_LM", {}),
        (TriviumForCausalLM, "CAUSAL_LM", {"encoder_layers": 0}),
        (TriviumForSequenceClassification, "SEQ_CLS", {"decoder_layers": 0}),
    ],
)
def test_norms_are_tuned_and_merged(
    model_class: type[PreTrainedModel], task: str, layers: dict[str, int], norm_position: str
) -> None:
    """LN tuning would fail if a stack without a final norm had a parameterless module named `norm`."""
    model = tiny_model(model_class, norm_position=norm_position, **layers)
    norms = sum(type(module).__name__ == "LayerNorm" for module in model.modules())
    ids = random_ids(3, 5)
    labels = LABELS if task == "SEQ_CLS" else ids
    tuned = get_peft_model(model, LNTuningConfig(task_type=task, target_modules=["norm"]))
    names = [name for name, p in tuned.named_parameters() if p.requires_grad and "classifier" not in name]
    assert len(names) == 2 * norms
    expected = train(tuned, ids, labels)
    torch.testing.assert_close(logits_of(tuned.merge_and_unload(), ids, labels), expected, **EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_on_classifiers(tmp_path: Path, method: str) -> None:
    """Given a task type, PEFT requires the head itself to have a weight; name the head's layers to merge."""
    config, options = METHODS[method]
    ids = random_ids(3, 5)
    saved = tiny_model(TriviumForSequenceClassification, decoder_layers=0)
    saved.save_pretrained(tmp_path / "base")
    refused = get_peft_model(saved, config(task_type="SEQ_CLS", **options))
    with pytest.raises(AttributeError, match="has no attribute 'weight'"):  # PEFT 0.21 merges linear heads only
        refused.merge_and_unload()

    base = TriviumForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float64)
    model = get_peft_model(base, config(modules_to_save=["dense", "out_proj"], **options))
    expected = train(model, ids, LABELS)
    model.save_pretrained(tmp_path / "adapter")
    base = TriviumForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float64)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(again, ids, LABELS), expected, **EXACT)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), ids, LABELS), expected, **EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_on_decoder_classifiers(method: str) -> None:
    """The head is a single projection, so the task type is enough for PEFT to train and merge it."""
    config, options = METHODS[method]
    model = tiny_model(TriviumDecoderForSequenceClassification, encoder_layers=0)
    model = get_peft_model(model, config(task_type="SEQ_CLS", **options))
    ids = random_ids(3, 5)
    expected = train(model, ids, LABELS)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), ids, LABELS), expected, **EXACT)


def test_trainable_tokens_of_encoder_decoder_stay_tied() -> None:
    """The default and the encoder's name work; `embed_tokens` matches both embeddings, which PEFT cannot tie."""
    ids = random_ids(3, 5)
    for targets in (None, ["encoder.embed_tokens"]):
        config = TrainableTokensConfig(task_type="SEQ_2_SEQ_LM", token_indices=[4, 5], target_modules=targets)
        model = get_peft_model(tiny_model(), config)
        expected = train(model, ids, ids)
        merged = model.merge_and_unload()
        torch.testing.assert_close(logits_of(merged, ids, ids), expected, **EXACT)
        assert merged.lm_head.weight is merged.model.encoder.embed_tokens.weight
        assert merged.model.decoder.embed_tokens.weight is merged.model.encoder.embed_tokens.weight
    config = TrainableTokensConfig(task_type="SEQ_2_SEQ_LM", token_indices=[4, 5], target_modules=["embed_tokens"])
    with pytest.raises(ValueError, match="unknown layer type"):  # PEFT 0.21 wraps a tied embedding twice
        get_peft_model(tiny_model(), config)(input_ids=ids, labels=ids)
