"""Compare outputs and gradients with independent implementations of the paper that have the same weights.

Each reference has a linear function that converts its tensors, so it applies to gradients as well.
"""

import math
from collections.abc import Callable

import pytest
import torch
from searches import assert_same_scores
from tiny import (
    BOS,
    EOS,
    EXACT,
    PAD,
    Tensors,
    assert_same_gradients,
    copy_weights,
    mask_of,
    random_ids,
    shake,
    tiny_config,
    train_to_copy,
)
from torch import nn
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from trivium import TriviumForConditionalGeneration

SHAPES = [([5], [4]), ([6, 3, 1], [4, 7, 2]), ([1, 9], [1, 5])]


def sinusoids(position_ids: torch.Tensor, d_model: int) -> torch.Tensor:
    """Compute the sinusoids of section 3.5 in pure Python."""

    def encode(position: int) -> list[float]:
        angles = [position / 10000 ** (2 * i / d_model) for i in range(d_model // 2)]
        return [f(angle) for angle in angles for f in (math.sin, math.cos)]

    rows = [[encode(position) for position in row] for row in position_ids.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def batch(source_lengths: list[int], target_lengths: list[int], side: str = "right") -> Tensors:
    source_mask, target_mask = mask_of(source_lengths, side), mask_of(target_lengths)
    target = random_ids(*target_mask.shape)
    target[:, 0] = BOS
    return {
        "input_ids": random_ids(*source_mask.shape).where(source_mask.bool(), PAD),
        "attention_mask": source_mask,
        "decoder_input_ids": target.where(target_mask.bool(), PAD),
        "decoder_attention_mask": target_mask,
    }


def assert_same(logits: torch.Tensor, expected: torch.Tensor, inputs: Tensors) -> torch.Tensor:
    """Compare outputs at real tokens; return random weights that reduce them to a scalar objective."""
    real = inputs["decoder_attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], **EXACT)
    return torch.randn_like(logits) * real[..., None]


# --- torch.nn.Transformer: every sublayer, both norm positions, both padding sides ---


def from_torch(tensors: Tensors, norm_position: str) -> Tensors:
    """Rename the tensors of `nn.Transformer` and an `embedding`."""
    attentions = {"self_attn": "self_attn", "multihead_attn": "cross_attn"}
    norms = {
        "encoder": {"norm1": "self_attn_residual", "norm2": "feed_forward_residual"},
        "decoder": {"norm1": "self_attn_residual", "norm2": "cross_attn_residual", "norm3": "feed_forward_residual"},
    }
    result = {"model.encoder.embed_tokens.weight": tensors["embedding"]}
    for name, tensor in tensors.items():
        match name.split("."):
            case [stack, "layers", layer, attention, ("in_proj_weight" | "in_proj_bias") as kind]:
                for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                    kind = kind.removeprefix("in_proj_")
                    result[f"model.{stack}.layers.{layer}.{attentions[attention]}.{projection}_proj.{kind}"] = part
            case [stack, "layers", layer, attention, "out_proj", kind]:
                result[f"model.{stack}.layers.{layer}.{attentions[attention]}.o_proj.{kind}"] = tensor
            case [stack, "layers", layer, ("linear1" | "linear2") as linear, kind]:
                projection = "up_proj" if linear == "linear1" else "down_proj"
                result[f"model.{stack}.layers.{layer}.feed_forward.{projection}.{kind}"] = tensor
            case [stack, "layers", layer, norm, kind]:
                result[f"model.{stack}.layers.{layer}.{norms[stack][norm]}.norm.{kind}"] = tensor
            case [stack, "norm", kind]:
                assert norm_position == "pre"
                result[f"model.{stack}.norm.{kind}"] = tensor
    return result


def torch_transformer(config, norm_position: str) -> nn.ModuleDict:
    transformer = nn.Transformer(
        d_model=config.d_model,
        nhead=config.num_attention_heads,
        num_encoder_layers=config.encoder_layers,
        num_decoder_layers=config.decoder_layers,
        dim_feedforward=config.ffn_dim,
        activation=config.activation_function,
        dropout=0.0,
        batch_first=True,
        norm_first=norm_position == "pre",
        dtype=torch.float64,
    )
    if norm_position == "post":  # nn.Transformer has a final norm at the end of each stack; the paper has none.
        transformer.encoder.norm = transformer.decoder.norm = None
    transformer.register_parameter("embedding", nn.Parameter(torch.randn(config.vocab_size, config.d_model).double()))
    return shake(transformer)


def torch_logits(transformer: nn.Module, inputs: Tensors) -> torch.Tensor:
    source_mask, target_mask = inputs["attention_mask"], inputs["decoder_attention_mask"]

    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        d_model = transformer.embedding.shape[1]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return transformer.embedding[ids] * math.sqrt(d_model) + sinusoids(positions, d_model)

    length = target_mask.shape[1]
    hidden = transformer(
        embed(inputs["input_ids"], source_mask),
        embed(inputs["decoder_input_ids"], target_mask),
        tgt_mask=torch.ones(length, length).triu(1).bool(),
        src_key_padding_mask=source_mask == 0,
        tgt_key_padding_mask=target_mask == 0,
        memory_key_padding_mask=source_mask == 0,
    )
    return hidden @ transformer.embedding.T


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # disables torch's fast path
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("activation", ["relu", pytest.param("gelu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_logits_match_torch_nn_transformer(norm_position: str, activation: str, attention: str, side: str) -> None:
    config = tiny_config(
        attention_bias=True,
        norm_position=norm_position,
        activation_function=activation,
        attn_implementation=attention,
    )
    transformer = torch_transformer(config, norm_position)
    model = TriviumForConditionalGeneration(config).double()
    copy_weights(model, from_torch(dict(transformer.named_parameters()), norm_position))
    for source_lengths, target_lengths in SHAPES:
        inputs = batch(source_lengths, target_lengths, side)
        logits, expected = model(**inputs).logits, torch_logits(transformer, inputs)
        weights = assert_same(logits, expected, inputs)
        model.zero_grad()
        transformer.zero_grad()
        (logits * weights).sum().backward()
        (expected * weights).sum().backward()
        gradients = {name: parameter.grad for name, parameter in transformer.named_parameters()}
        assert_same_gradients(model, from_torch(gradients, norm_position))


# --- MarianMTModel: a complete translation model, including generate() ---


def from_marian(tensors: Tensors) -> Tensors:
    """Rename and permute the tensors of `MarianMTModel`.

    Marian puts all sines before all cosines, the paper interleaves them: permute the dimensions of the residual
    stream wherever a layer reads or writes it.
    """
    d_model = tensors["model.shared.weight"].shape[1]
    order = torch.arange(d_model).view(2, -1).T.flatten()
    attentions = {"self_attn": "self_attn", "encoder_attn": "cross_attn"}
    norms = {
        "self_attn_layer_norm": "self_attn_residual",
        "encoder_attn_layer_norm": "cross_attn_residual",
        "final_layer_norm": "feed_forward_residual",
    }

    def reads(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, order] if tensor.ndim == 2 else tensor

    def writes(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[order]

    rules: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
        "fc1": ("feed_forward.up_proj", reads),
        "fc2": ("feed_forward.down_proj", writes),
        **{source_name: (f"{residual}.norm", writes) for source_name, residual in norms.items()},
        **{
            f"{source_name}.{projection}_proj": (f"{attention}.{projection}_proj", reads)
            for source_name, attention in attentions.items()
            for projection in "qkv"
        },
        **{
            f"{source_name}.out_proj": (f"{attention}.o_proj", writes) for source_name, attention in attentions.items()
        },
    }
    result = {"model.encoder.embed_tokens.weight": reads(tensors["model.shared.weight"])}
    for name, tensor in tensors.items():
        match name.split(".", 4):
            case ["model", stack, "layers", layer, rest]:
                module, _, kind = rest.rpartition(".")
                target, permute = rules[module]
                result[f"model.{stack}.layers.{layer}.{target}.{kind}"] = permute(tensor)
    return result


def marian_and_trivium(
    attention: str = "eager", std: float = 0.3
) -> tuple[MarianMTModel, TriviumForConditionalGeneration]:
    trivium_config = tiny_config(attention_bias=True, attn_implementation=attention, activation_function="silu")
    config = MarianConfig(
        vocab_size=trivium_config.vocab_size,
        d_model=trivium_config.d_model,
        encoder_layers=trivium_config.encoder_layers,
        decoder_layers=trivium_config.decoder_layers,
        encoder_attention_heads=trivium_config.num_attention_heads,
        decoder_attention_heads=trivium_config.num_attention_heads,
        encoder_ffn_dim=trivium_config.ffn_dim,
        decoder_ffn_dim=trivium_config.ffn_dim,
        activation_function=trivium_config.activation_function,
        max_position_embeddings=trivium_config.max_position_embeddings,
        scale_embedding=True,
        dropout=0.0,
        init_std=0.2,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
        attn_implementation=attention,
    )
    marian = shake(MarianMTModel(config).double().eval(), std)
    table = sinusoids(torch.arange(config.max_position_embeddings)[None], config.d_model)[0]
    halves = torch.cat((table[:, 0::2], table[:, 1::2]), dim=1)
    for stack in (marian.model.encoder, marian.model.decoder):
        stack.embed_positions.weight.data = halves  # Marian rounds its table to float32.
    model = TriviumForConditionalGeneration(trivium_config).double().eval()
    copy_weights(model, from_marian(dict(marian.named_parameters())))
    return marian, model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_match_marian(attention: str) -> None:
    marian, model = marian_and_trivium(attention)
    for source_lengths, target_lengths in SHAPES:
        inputs = batch(source_lengths, target_lengths)
        logits, expected = model(**inputs).logits, marian(**inputs).logits
        weights = assert_same(logits, expected, inputs)
        model.zero_grad()
        marian.zero_grad()
        (logits * weights).sum().backward()
        (expected * weights).sum().backward()
        gradients = {name: p.grad for name, p in marian.named_parameters() if p.grad is not None}
        assert_same_gradients(model, from_marian(gradients))


def test_loss_matches_marian() -> None:
    marian, model = marian_and_trivium()
    inputs = batch([6, 3, 1], [4, 7, 2])
    labels = inputs.pop("decoder_input_ids").masked_fill(inputs.pop("decoder_attention_mask") == 0, -100)
    actual, expected = model(**inputs, labels=labels), marian(**inputs, labels=labels)
    torch.testing.assert_close(actual.loss, expected.loss, **EXACT)
    torch.testing.assert_close(actual.logits, expected.logits, **EXACT)


@pytest.fixture(scope="module")
def trained() -> tuple[MarianMTModel, TriviumForConditionalGeneration]:
    """Return partly trained models: sentences end, and beam search differs from greedy search."""
    torch.manual_seed(0)
    marian, model = marian_and_trivium(std=0.0)
    train_to_copy(marian, steps=120, learning_rate=5e-3)
    copy_weights(model, from_marian(dict(marian.named_parameters())))
    return marian, model


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 4},
        {"num_beams": 4, "length_penalty": 0.2, "early_stopping": True},
        {"num_beams": 5, "num_return_sequences": 3, "no_repeat_ngram_size": 2},
    ],
    ids=["greedy", "beam", "beam-early", "beam-n-best"],
)
def test_generation_matches_marian(
    trained: tuple[MarianMTModel, TriviumForConditionalGeneration], options: dict[str, float]
) -> None:
    marian, model = trained
    inputs = batch([6, 3, 1, 8, 5, 7], [1] * 6)
    generation_config = GenerationConfig(
        max_new_tokens=12,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    arguments = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "generation_config": generation_config,
    }
    actual, reference = model.generate(**arguments), marian.generate(**arguments)
    assert torch.equal(actual.sequences, reference.sequences)
    ends = (actual.sequences == EOS).int().argmax(dim=-1)
    assert len(ends.unique()) > 2, "the sentences end all alike: the test would not see a difference"
    assert_same_scores(actual, reference, **EXACT)
