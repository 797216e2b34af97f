"""Test PEFT adapters on every kind of Trivium model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny import mask_of, random_ids, tiny_model
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from trivium import (
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
)

# PEFT 0.21 uses an attribute that transformers 5.24 has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]

ENCODER_ONLY, DECODER_ONLY = {"decoder_layers": 0, "num_labels": 3}, {"encoder_layers": 0}
MODELS: dict[str, tuple[type[PreTrainedModel], dict[str, int], Any]] = {
    "SEQ_2_SEQ_LM": (TriviumForConditionalGeneration, {}, AutoPeftModelForSeq2SeqLM),
    "CAUSAL_LM": (TriviumForCausalLM, DECODER_ONLY, AutoPeftModelForCausalLM),
    "SEQ_CLS": (TriviumForSequenceClassification, ENCODER_ONLY, AutoPeftModelForSequenceClassification),
    "TOKEN_CLS": (TriviumForTokenClassification, ENCODER_ONLY, AutoPeftModelForTokenClassification),
    "QUESTION_ANS": (TriviumForQuestionAnswering, ENCODER_ONLY, AutoPeftModelForQuestionAnswering),
    "FEATURE_EXTRACTION": (TriviumEncoderModel, ENCODER_ONLY, AutoPeftModelForFeatureExtraction),
}
LANGUAGE_MODELS = ["SEQ_2_SEQ_LM", "CAUSAL_LM"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def inputs_for(task: str) -> dict[str, torch.Tensor]:
    mask = mask_of([7, 4, 2, 5])
    ids = random_ids(4, 7).masked_fill(mask == 0, 0)
    labels: dict[str, Any] = {
        "SEQ_CLS": {"labels": torch.tensor([0, 1, 2, 0])},
        "TOKEN_CLS": {"labels": (ids % 3).masked_fill(mask == 0, -100)},
        "QUESTION_ANS": {"start_positions": torch.tensor([0, 1, 1, 2]), "end_positions": torch.tensor([3, 3, 1, 4])},
        "FEATURE_EXTRACTION": {},
    }
    masked = {"labels": ids.masked_fill(mask == 0, -100)}
    return {"input_ids": ids, "attention_mask": mask, **labels.get(task, masked)}


def answer(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits, or the first output of a model without a head."""
    outputs = model(**inputs)
    names = ("logits", "start_logits", "last_hidden_state")
    return next(outputs[name] for name in names if name in outputs).detach()


def train(model: nn.Module, inputs: dict[str, torch.Tensor], steps: int = 8) -> None:
    """Train all trainable parameters to reduce the loss or, for a model without a head, the output's magnitude."""
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(steps):
        outputs = model(**inputs)
        loss = outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = dict(model.named_parameters())
    assert frozen
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    model.eval()


def load_base(task: str, folder: Path) -> PreTrainedModel:
    return MODELS[task][0].from_pretrained(folder, dtype=torch.float64).eval()


def add_adapter(task: str, folder: Path, config: PeftConfig, **options: Any) -> PeftModel:
    """Save a tiny model to `folder`, load it, and add an adapter."""
    model_class, layers, _ = MODELS[task]
    tiny_model(model_class, **layers, **options).save_pretrained(folder)
    return get_peft_model(load_base(task, folder), config)


@pytest.mark.parametrize("targets", [pytest.param("some", marks=pytest.mark.slow), "all"])
@pytest.mark.parametrize("task", MODELS)
def test_lora_trains_saves_loads_and_merges(tmp_path: Path, task: str, targets: str) -> None:
    # For these two tasks, PEFT would add an adapter to the head, as it does with BERT, although the head is new and
    # must be trained in full.
    head = {"TOKEN_CLS": ["classifier"], "QUESTION_ANS": ["qa_outputs"]}.get(task)
    every = {"target_modules": "all-linear", "exclude_modules": head}
    config = LoraConfig(
        task_type=task, r=4, **({"target_modules": ["q_proj", "v_proj"]} if targets == "some" else every)
    )
    inputs = inputs_for(task)
    model = add_adapter(task, tmp_path / "base", config)
    untrained = load_base(task, tmp_path / "base")
    names = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names == (
        {"q_proj", "v_proj"} if targets == "some" else {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    )
    if task in (*LANGUAGE_MODELS, "FEATURE_EXTRACTION"):  # the other models have a head that is trained in full
        torch.testing.assert_close(answer(model, inputs), answer(untrained, inputs), **EXACT)
        assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    train(model, inputs)
    expected = answer(model, inputs)
    assert (expected - answer(untrained, inputs)).abs().max() > 1e-3

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_base(task, tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(answer(again, inputs), expected, **EXACT)
    automatic = MODELS[task][2].from_pretrained(tmp_path / "adapter", dtype=torch.float64).eval()
    torch.testing.assert_close(answer(automatic, inputs), expected, **EXACT)

    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if task in LANGUAGE_MODELS:
        written = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    merged = model.merge_and_unload()
    torch.testing.assert_close(answer(merged, inputs), expected, **EXACT)
    merged.save_pretrained(tmp_path / "merged")
    loaded = load_base(task, tmp_path / "merged")
    torch.testing.assert_close(answer(loaded, inputs), expected, **EXACT)
    if task in LANGUAGE_MODELS:
        assert torch.equal(loaded.generate(**prompt, max_new_tokens=4, do_sample=False), written)


OTHER_METHODS = {
    "ia3": ["SEQ_2_SEQ_LM", "CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"],
    "prompt": ["SEQ_2_SEQ_LM", "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"],
    "prefix": ["SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"],
}


def other_config(method: str, task: str) -> PeftConfig:
    if method == "ia3":
        targets = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        return IA3Config(task_type=task, **targets)
    if method == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=3)
    # The prefix belongs to the decoder if there is one, but PEFT's default, `num_hidden_layers`, counts encoder
    # layers.
    layers = 3 if task in LANGUAGE_MODELS else 2
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=3, num_layers=layers)


@pytest.mark.parametrize(
    ("method", "task"),
    [
        pytest.param(method, task, marks=[] if task in LANGUAGE_MODELS else pytest.mark.slow)
        for method in OTHER_METHODS
        for task in OTHER_METHODS[method]
    ],
)
def test_other_adapters_train_save_and_load(tmp_path: Path, method: str, task: str) -> None:
    inputs = inputs_for(task)
    model = add_adapter(task, tmp_path / "base", other_config(method, task))
    train(model, inputs)
    expected = answer(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_base(task, tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(answer(again, inputs), expected, **EXACT)
    if task in LANGUAGE_MODELS:
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        assert torch.equal(model.generate(**prompt, max_new_tokens=4), again.generate(**prompt, max_new_tokens=4))


def test_encoder_attends_to_prefix_not_padding(tmp_path: Path) -> None:
    """Prefix tuning works on encoders, because their attention accepts a cache although they never create one."""
    inputs = inputs_for("FEATURE_EXTRACTION")
    model = add_adapter("FEATURE_EXTRACTION", tmp_path, other_config("prefix", "FEATURE_EXTRACTION"))
    nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    together = answer(model.eval(), inputs)
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        # Compare with float32 tolerance, because PEFT keeps the prefix in float32.
        torch.testing.assert_close(answer(model, alone)[0], together[row, :length])
        assert (answer(load_base("FEATURE_EXTRACTION", tmp_path), alone)[0] - together[row, :length]).abs().max() > 0.1


def test_prefix_is_refused_for_encoder_heads(tmp_path: Path) -> None:
    """PEFT requires a parameter `past_key_values` of `forward`, which models with an encoder head do not have."""
    model = add_adapter("SEQ_CLS", tmp_path, other_config("prefix", "SEQ_CLS"))
    with pytest.raises(ValueError, match="does not support past key values"):
        model(**inputs_for("SEQ_CLS"))


# --- Embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_trained_tokens_are_scaled_and_stay_tied(tmp_path: Path, task: str) -> None:
    config = LoraConfig(task_type=task, target_modules=["q_proj"], trainable_token_indices=[5, 6])
    inputs = inputs_for(task)
    inputs["input_ids"][:, :2] = torch.tensor([5, 6])
    model = add_adapter(task, tmp_path / "base", config)
    torch.testing.assert_close(answer(model, inputs), answer(load_base(task, tmp_path / "base"), inputs), **EXACT)
    train(model, inputs)
    expected = answer(model, inputs)
    merged = model.merge_and_unload()
    torch.testing.assert_close(answer(merged, inputs), expected, **EXACT)
    merged.save_pretrained(tmp_path / "merged")
    again = load_base(task, tmp_path / "merged")
    torch.testing.assert_close(answer(again, inputs), expected, **EXACT)
    embeddings = [p for name, p in again.named_parameters() if "embed_tokens" in name or "lm_head" in name]
    assert len(embeddings) == 1


def test_lora_of_embedding_is_scaled(tmp_path: Path) -> None:
    config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["embed_tokens"], init_lora_weights=False)
    inputs = inputs_for("FEATURE_EXTRACTION")
    model = add_adapter("FEATURE_EXTRACTION", tmp_path, config)
    expected = answer(model, inputs)
    torch.testing.assert_close(answer(model.merge_and_unload(), inputs), expected, **EXACT)


def test_tied_embeddings_are_not_silently_untied(tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"])
    with pytest.warns(UserWarning, match="`tie_word_embeddings=True`"):
        add_adapter("CAUSAL_LM", tmp_path / "lora", config)

    whole = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    inputs = inputs_for("CAUSAL_LM")
    with pytest.warns(UserWarning, match="`tie_word_embeddings=True`"):
        model = add_adapter("CAUSAL_LM", tmp_path / "untied", LoraConfig(**whole))
    train(model, inputs)
    expected = answer(model, inputs)
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = load_base("CAUSAL_LM", tmp_path / "merged")
    assert not again.config.tie_word_embeddings
    torch.testing.assert_close(answer(again, inputs), expected, **EXACT)

    model = add_adapter("CAUSAL_LM", tmp_path / "tied", LoraConfig(**whole, ensure_weight_tying=True))
    train(model, inputs)
    expected = answer(model, inputs)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.decoder.embed_tokens.weight
    torch.testing.assert_close(answer(merged, inputs), expected, **EXACT)


# --- The Trainer, and processes without the package
# -------------------------------------------------------------------


def test_trainer_saves_adapter(tmp_path: Path) -> None:
    config = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear")
    model = add_adapter("SEQ_CLS", tmp_path / "base", config)
    data = Dataset.from_dict({name: value.tolist() for name, value in inputs_for("SEQ_CLS").items()})
    arguments = TrainingArguments(
        str(tmp_path / "runs"), max_steps=6, learning_rate=0.03, report_to="none", save_strategy="no", use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    before = trainer.evaluate(data)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < before
    predicted = torch.from_numpy(trainer.predict(data).predictions)
    assert predicted.shape == (4, 3)

    trainer.save_model(str(tmp_path / "adapter"))
    assert not list((tmp_path / "adapter").glob("model*"))  # Only the adapter is saved, not the base model.
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", dtype=torch.float64).eval()
    inputs = {name: torch.tensor(data[name]) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(answer(again, inputs), predicted, **EXACT)


@pytest.mark.slow
def test_adapter_loads_without_package(tmp_path: Path, without_trivium: Callable[[str], torch.Tensor]) -> None:
    model = add_adapter("CAUSAL_LM", tmp_path / "base", LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    inputs = inputs_for("CAUSAL_LM")
    train(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    result = without_trivium(
        f"""
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("adapter", dtype=torch.float64, trust_remote_code=True)
model.merge_and_unload().save_pretrained("merged")
merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float64, trust_remote_code=True)
ids, mask = torch.tensor({inputs["input_ids"].tolist()}), torch.tensor({inputs["attention_mask"].tolist()})
torch.save(merged(input_ids=ids, attention_mask=mask).logits.detach(), "result.pt")
"""
    )
    torch.testing.assert_close(result, answer(model, inputs), **EXACT)
    torch.testing.assert_close(answer(load_base("CAUSAL_LM", tmp_path / "merged"), inputs), result, **EXACT)


@pytest.mark.slow
def test_docs_page(tmp_path: Path, run_page: Callable[[str], dict[str, Any]]) -> None:
    tiny_model(TriviumForCausalLM, **DECODER_ONLY).save_pretrained(tmp_path / "runs" / "shakespeare")
    run_page("PEFT")
    merged = TriviumForCausalLM.from_pretrained(tmp_path / "runs" / "merged")
    base = TriviumForCausalLM.from_pretrained(tmp_path / "runs" / "shakespeare")
    torch.testing.assert_close(merged.state_dict(), base.state_dict())  # untrained adapters do not change weights
