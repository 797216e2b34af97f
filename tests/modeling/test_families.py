"""Compare tiny models with the presets for BERT, GPT-2 and LLaMA with transformers' own classes, in float64.

With the same weights, all outputs and gradients must be equal. Each family has a linear function that converts native
tensors, so it applies to gradients as well. The native configurations set sizes only, so all of their other defaults
must match the presets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from searches import assert_same_scores
from tiny import BOS, EOS, EXACT, PAD, Tensors, assert_same_gradients, copy_weights, mask_of, random_ids, shake
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from trivium import (
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    preset_config,
)

SHAPES = [[5], [6, 3, 1], [2, 9]]  # Lengths of the texts in a batch.

SIZES = {
    "vocab_size": 31,
    "num_attention_heads": 4,
    "max_position_embeddings": 29,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
OUR_SIZES = {**SIZES, "d_model": 24, "ffn_dim": 40}
NATIVE_SIZES = {**SIZES, "hidden_size": 24, "num_hidden_layers": 3}

BERT_NAMES = {
    "bert.": "model.",
    "embeddings.word_embeddings": "encoder.embed_tokens",
    "embeddings.position_embeddings": "encoder.embed_positions.embedding",
    "embeddings.token_type_embeddings": "encoder.embed_token_types",
    "embeddings.LayerNorm": "encoder.embedding_norm",
    "encoder.layer.": "encoder.layers.",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "attention.output.LayerNorm": "self_attn_residual.norm",
    "intermediate.dense": "feed_forward.up_proj",
    "output.dense": "feed_forward.down_proj",
    "output.LayerNorm": "feed_forward_residual.norm",
    "cls.predictions.transform.dense": "mlm_head.dense",
    "cls.predictions.transform.LayerNorm": "mlm_head.norm",
    "cls.predictions.bias": "mlm_head.decoder.bias",
}
BERT_CLASSIFIER_NAMES = {"classifier.": "classifier.out_proj.", "bert.pooler.": "classifier.", **BERT_NAMES}
GPT2_NAMES = {
    "transformer.": "model.decoder.",
    "wte": "embed_tokens",
    "wpe": "embed_positions.embedding",
    ".h.": ".layers.",
    "attn.c_proj": "self_attn.o_proj",
    "attn.c_attn": "self_attn.qkv_proj",
    "mlp.c_fc": "feed_forward.up_proj",
    "mlp.c_proj": "feed_forward.down_proj",
    "ln_1": "self_attn_residual.norm",
    "ln_2": "feed_forward_residual.norm",
    "ln_f": "norm",
}
LLAMA_NAMES = {
    "model.": "model.decoder.",
    "mlp.": "feed_forward.",
    "input_layernorm": "self_attn_residual.norm",
    "post_attention_layernorm": "feed_forward_residual.norm",
}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float64 the norms, angles, softmaxes and losses that native models hard-code to float32."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


class Pair(NamedTuple):
    """A Trivium model, the native model with the same weights, and the conversion function for its tensors."""

    ours: PreTrainedModel
    native: PreTrainedModel
    convert: Callable[[Tensors], Tensors]


def pair(ours: PreTrainedModel, native: PreTrainedModel, convert: Callable[[Tensors], Tensors]) -> Pair:
    shake(native.double().eval(), std=0.3)
    copy_weights(ours.double().eval(), convert(dict(native.named_parameters())))
    return Pair(ours, native, convert)


def in_training(pair: Pair) -> Pair:
    pair.ours.train()
    pair.native.train()
    return pair


def rename_tensors(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Replace all `names` in the tensor names, one by one."""
    result = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        result[name] = tensor
    return result


def from_gpt2(tensors: Tensors) -> Tensors:
    """Transpose the matrices of GPT-2 and split its fused attention projection."""
    result = {}
    for name, tensor in rename_tensors(tensors, GPT2_NAMES).items():
        if tensor.ndim == 2 and "layers" in name:
            tensor = tensor.T
        if "qkv_proj" in name:
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                result[name.replace("qkv", projection)] = part
        else:
            result[name] = tensor
    return result


def bert(
    ours: Callable[..., PreTrainedModel],
    native: Callable[..., PreTrainedModel],
    names: dict[str, str] = BERT_NAMES,
    **options: Any,
) -> Pair:
    config = preset_config("bert-base", **OUR_SIZES, encoder_layers=3, **options)
    native_config = BertConfig(**NATIVE_SIZES, intermediate_size=40, **options)
    return pair(ours(config), native(native_config), partial(rename_tensors, names=names))


def gpt2(**options: Any) -> Pair:
    config = preset_config("gpt2", **OUR_SIZES, decoder_layers=3, **options)
    native_config = GPT2Config(**NATIVE_SIZES, n_inner=40, **options)
    return pair(TriviumForCausalLM(config), GPT2LMHeadModel(native_config), from_gpt2)


def llama(rope_theta: float | None = None, tie_word_embeddings: bool = True, **options: Any) -> Pair:
    options = {**options, "num_key_value_heads": 2, "tie_word_embeddings": tie_word_embeddings}
    config = preset_config("llama-135m", **OUR_SIZES, decoder_layers=3, **options)
    native_config = LlamaConfig(**NATIVE_SIZES, intermediate_size=40, rms_norm_eps=1e-5, **options)  # SmolLM's value
    if rope_theta is not None:
        config.rope_theta = native_config.rope_parameters["rope_theta"] = rope_theta
    return pair(
        TriviumForCausalLM(config), LlamaForCausalLM(native_config), partial(rename_tensors, names=LLAMA_NAMES)
    )


MASKED_LM = partial(bert, TriviumForMaskedLM, BertForMaskedLM)
SEQUENCE = partial(bert, TriviumForSequenceClassification, BertForSequenceClassification, BERT_CLASSIFIER_NAMES)
TOKENS = partial(bert, TriviumForTokenClassification, BertForTokenClassification, num_labels=3)
ANSWERS = partial(bert, TriviumForQuestionAnswering, BertForQuestionAnswering)
PAIRS: dict[str, Callable[..., Pair]] = {
    "bert": partial(bert, TriviumEncoderModel, partial(BertModel, add_pooling_layer=False)),
    "bert-masked-lm": MASKED_LM,
    "bert-sequence": partial(SEQUENCE, num_labels=3),
    "bert-tokens": TOKENS,
    "bert-answers": ANSWERS,
    "gpt2": gpt2,
    "llama": llama,
    "llama-untied-theta": partial(llama, rope_theta=300.0, tie_word_embeddings=False),
}
CAUSAL = ["gpt2", "llama", "llama-untied-theta"]
every_pair = pytest.mark.parametrize("name", PAIRS)
either_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def batch(lengths: list[int], side: str = "right") -> Tensors:
    """Return random tokens even at padding positions, so that only the mask distinguishes real tokens."""
    mask = mask_of(lengths, side)
    return {"input_ids": random_ids(*mask.shape), "attention_mask": mask}


def token_types(inputs: Tensors) -> Tensors:
    return {"token_type_ids": torch.randint(2, inputs["input_ids"].shape)}


def counted_positions(inputs: Tensors) -> Tensors:
    """Return position ids that count padding as well, so that even outputs at padding positions match."""
    ids = inputs["input_ids"]
    return {"position_ids": torch.arange(ids.shape[1]).expand(ids.shape)}


def tensors_of(outputs: Any, mask: torch.Tensor) -> Tensors:
    """Return all output tensors; those with one vector per token are restricted to real tokens."""
    tensors = {}
    for key, value in outputs.items():
        for i, tensor in enumerate(value if isinstance(value, tuple) else [value]):
            if isinstance(tensor, torch.Tensor):
                tensors[f"{key}.{i}"] = tensor[mask.bool()] if tensor.shape[:2] == mask.shape else tensor
    return tensors


def assert_same(pair: Pair, inputs: Tensors, seed: int = 0, **options: Any) -> Tensors:
    """Compare all outputs, and the gradients of a randomly weighted sum of them; return the outputs."""
    outputs = []
    for model in (pair.ours, pair.native):
        torch.manual_seed(seed)  # for dropout
        outputs.append(tensors_of(model(**inputs, **options), inputs["attention_mask"]))
        model.zero_grad()
    ours, native = outputs
    assert set(ours) == set(native)
    weights = {key: torch.randn_like(tensor) for key, tensor in native.items()}
    for tensors in outputs:
        torch.stack([(tensors[key] * weights[key]).sum() for key in weights]).sum().backward()
    for key, expected in native.items():
        torch.testing.assert_close(ours[key], expected, **EXACT, msg=partial("{}: {}".format, key))
    gradients = {name: parameter.grad for name, parameter in pair.native.named_parameters()}
    assert_same_gradients(pair.ours, pair.convert(gradients))
    return ours


@either_attention
@every_pair
def test_outputs_match_native(name: str, attention: str) -> None:
    pair = PAIRS[name](attn_implementation=attention)
    for lengths in SHAPES:
        inputs = batch(lengths)
        assert_same(pair, inputs)
        if name.startswith("bert"):
            assert_same(pair, {**inputs, **token_types(inputs)})


@either_attention
@pytest.mark.parametrize("name", ["llama", "llama-untied-theta"])
def test_left_padding_matches_native(name: str, attention: str) -> None:
    """Rotary positions are relative, so it does not matter that only the native model counts padding in positions."""
    pair = PAIRS[name](attn_implementation=attention)
    for lengths in SHAPES:
        assert_same(pair, batch(lengths, "left"))


@every_pair
def test_hidden_states_and_attentions_match_native(name: str) -> None:
    pair = PAIRS[name](attn_implementation="eager")
    for lengths in SHAPES:
        inputs = batch(lengths)
        inputs |= counted_positions(inputs)
        found = assert_same(pair, inputs, output_hidden_states=True, output_attentions=True)
        assert {"hidden_states.3", "attentions.2"} < set(found)


@every_pair
def test_dropout_matches_native(name: str) -> None:
    """With equal seeds, dropout must be applied in the same places and order, and at the same rates."""
    pair = PAIRS[name](attn_implementation="eager")
    inputs = batch([6, 3, 1])
    calm = pair.ours(**inputs)[0]
    assert_same(in_training(pair), inputs)
    assert torch.allclose(pair.ours(**inputs)[0], calm) == name.startswith("llama")


# --- Losses in training: like the families, the presets use no label smoothing ---


def token_labels(inputs: Tensors, labels: int) -> Tensors:
    """Return labels for about half of the real tokens; all others are -100."""
    shape = inputs["input_ids"].shape
    counts = (torch.rand(shape) < 0.5) & inputs["attention_mask"].bool()
    counts[0, :2] = True  # At least these.
    return {"labels": torch.randint(labels, shape).where(counts, -100)}


def test_masked_lm_loss_matches_native() -> None:
    pair = in_training(MASKED_LM())
    for lengths in SHAPES:
        inputs = batch(lengths)
        assert_same(pair, {**inputs, **token_labels(inputs, 31)})


def test_token_classification_loss_matches_native() -> None:
    pair = in_training(TOKENS())
    for lengths in SHAPES:
        inputs = batch(lengths)
        assert_same(pair, {**inputs, **token_labels(inputs, 3)})


@pytest.mark.parametrize("is_configured", [True, False], ids=["configured", "inferred"])
@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("single_label_classification", 3, lambda texts: torch.randint(3, (texts,))),
        ("multi_label_classification", 3, lambda texts: torch.randint(2, (texts, 3)).double()),
        ("regression", 1, lambda texts: torch.randn(texts).double()),
    ],
)
def test_sequence_classification_loss_matches_native(
    problem_type: str, num_labels: int, labels: Callable[[int], torch.Tensor], is_configured: bool
) -> None:
    pair = in_training(SEQUENCE(num_labels=num_labels, problem_type=problem_type if is_configured else None))
    for lengths in SHAPES:
        assert_same(pair, {**batch(lengths), "labels": labels(len(lengths))})
    assert pair.native.config.problem_type == problem_type


def test_multi_output_regression_loss_matches_native() -> None:
    pair = in_training(SEQUENCE(num_labels=3, problem_type="regression"))
    assert_same(pair, {**batch([6, 3, 1]), "labels": torch.randn(3, 3).double()})


@pytest.mark.parametrize(
    ("start", "end"),
    [([0, 2, 0], [4, 2, 5]), ([0, 2, 6], [4, 2, 6]), ([0, 2, 5], [4, 6, 9])],
    ids=["in-range", "answer-cut-off", "only-ends-cut-off"],
)
def test_question_answering_loss_matches_native(start: list[int], end: list[int]) -> None:
    inputs = batch([6, 3, 1])
    inputs |= counted_positions(inputs)  # the softmax includes padding positions
    inputs |= {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    assert_same(in_training(ANSWERS()), inputs)


def test_answers_out_of_range_have_no_loss() -> None:
    """The loss is zero where the native model returns NaN."""
    pair = ANSWERS()
    inputs = batch([6, 3, 1])
    inputs |= {"start_positions": torch.tensor([6, 7, 99]), "end_positions": torch.tensor([6, 7, 99])}
    assert pair.native(**inputs).loss.isnan()
    loss = pair.ours(**inputs).loss
    loss.backward()
    assert loss == 0
    for parameter in pair.ours.parameters():
        assert parameter.grad is not None
        assert parameter.grad.eq(0).all()


@pytest.mark.parametrize(("name", "side"), [*((name, "right") for name in CAUSAL), ("llama", "left")])
def test_causal_lm_loss_matches_native(name: str, side: str) -> None:
    pair = in_training(PAIRS[name]())
    for lengths in SHAPES:
        inputs = batch(lengths, side)
        mask = inputs["attention_mask"].bool()
        mask &= mask.roll(1, dims=1)  # The first token of a text is never a target, and neither is padding.
        inputs["labels"] = inputs["input_ids"].where(mask, -100)
        assert_same(pair, inputs)


# --- generate() ---


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 4},
        {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 0.2, "early_stopping": True},
    ],
    ids=["greedy", "beam", "beam-n-best"],
)
@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_matches_native(name: str, attention: str, options: dict[str, Any]) -> None:
    """Use several EOS tokens and ban repetitions, because random models rarely end a text and often loop."""
    pair = PAIRS[name](attn_implementation=attention)
    inputs, ends = batch([6, 3, 1, 5, 4, 2], "left"), [EOS, 7, 11, 17]
    generation_config = GenerationConfig(
        max_new_tokens=12,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=ends,
        no_repeat_ngram_size=1,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ours, native = (model.generate(**inputs, generation_config=generation_config) for model in pair[:2])
    assert torch.equal(ours.sequences, native.sequences)
    places = torch.isin(ours.sequences[:, 6:], torch.tensor(ends)).int().argmax(dim=1)
    assert len(places.unique()) > 2, "the texts end all alike: the test would not see a difference"
    assert_same_scores(ours, native, **EXACT)


# --- Presets at full size --------------------------------------------------------------------------------------------

PUBLISHED_LLAMA = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(
    ("preset", "ours", "native", "config", "parameters"),
    [
        ("bert-base", TriviumForMaskedLM, BertForMaskedLM, BertConfig(), 109_514_298),
        ("bert-base", TriviumForSequenceClassification, BertForSequenceClassification, BertConfig(), 109_483_778),
        ("gpt2", TriviumForCausalLM, GPT2LMHeadModel, GPT2Config(), 124_439_808),
        ("llama-135m", TriviumForCausalLM, LlamaForCausalLM, PUBLISHED_LLAMA, 134_515_008),
    ],
    ids=["bert-base-masked-lm", "bert-base-sequence", "gpt2", "llama-135m"],
)
def test_preset_has_published_size(
    preset: str,
    ours: type[PreTrainedModel],
    native: type[PreTrainedModel],
    config: PreTrainedConfig,
    parameters: int,
) -> None:
    with torch.device("meta"):
        models = ours(preset_config(preset)), native(config)
    assert [model.num_parameters() for model in models] == [parameters, parameters]
