"""Compare the attention functions with torch's, and test the cases that torch leaves undefined."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import mask_of, shake, tiny_config, tiny_model
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, apply_rotary_pos_emb

from trivium import TriviumForConditionalGeneration
from trivium.modeling.attention import NO_CONTEXT, AttentionContext, MultiHeadAttention, eager_attention_forward
from trivium.modeling.positions import RotaryPositions, rotate

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LLAMAS = {"rtol": 0, "atol": 1e-6}  # This function computes the softmax in float32.
FUNCTIONS = {"eager": eager_attention_forward, "sdpa": sdpa_attention_forward}


def attend(
    function: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Call an attention function with a (B, 1, L, S) boolean mask, converted to the format that it takes."""
    mask = visible
    if visible is not None and function == "eager":
        mask = torch.zeros(visible.shape, dtype=query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
    layer = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], training=True, is_causal=False)
    return FUNCTIONS[function](layer, query, key, value, mask, scaling=query.shape[-1] ** -0.5, dropout=dropout)


def random_heads(
    key_value_heads: int = 4, queries: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shapes = [(2, 4, queries, 6), (2, key_value_heads, 7, 6), (2, key_value_heads, 7, 6)]
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return query, key, value


def random_visible(queries: int = 5) -> torch.Tensor:
    """Return a random mask with at least one visible key per query."""
    visible = torch.rand(2, 1, queries, 7) < 0.5
    visible[..., 0] = True
    return visible


@pytest.mark.parametrize("queries", [5, 1])
@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_matches_torch_sdpa(function: str, masked: bool, key_value_heads: int, queries: int) -> None:
    query, key, value = random_heads(key_value_heads, queries)
    visible = random_visible(queries) if masked else None
    output, weights = attend(function, query, key, value, visible)
    key, value = (states.repeat_interleave(4 // key_value_heads, dim=1) for states in (key, value))
    expected = F.scaled_dot_product_attention(query, key, value, visible)
    torch.testing.assert_close(output.transpose(1, 2), expected, **EXACT)
    if weights is not None:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, queries).double(), **EXACT)
        torch.testing.assert_close(weights @ value, expected, **EXACT)


def test_matches_plain_python_equation_1() -> None:
    query, key, value = random_heads()
    output, weights = attend("eager", query, key, value, None)
    assert weights is not None
    q, k, v = (states[1, 2].tolist() for states in (query, key, value))
    scores = [sum(a * b for a, b in zip(q[3], row, strict=True)) / math.sqrt(6) for row in k]
    shares = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
    expected = [sum(share * row[i] for share, row in zip(shares, v, strict=True)) for i in range(6)]
    assert weights[1, 2, 3].tolist() == pytest.approx(shares, rel=1e-12)
    assert output[1, 3, 2].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("queries", [5, 1])
@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_fully_masked_query_returns_zeros(
    function: str, dtype: torch.dtype, key_value_heads: int, queries: int
) -> None:
    """Fully masked queries must get zero outputs and gradients, whatever the scores.

    The scores are so negative that adding them to the minimum of half precision would overflow to -inf.
    """
    query, key, value = random_heads(key_value_heads, queries, dtype)
    visible = random_visible(queries)
    visible[1, :, 0] = False
    output, _ = attend(function, query.abs() * 10, key.abs() * -10, value, visible)
    output.sum().backward()
    assert output[1, 0].eq(0).all()
    assert output.isfinite().all()
    for states in (query, key, value):
        assert states.grad is not None
        assert states.grad.isfinite().all()
    assert query.grad is not None
    assert query.grad[1, :, 0].eq(0).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_masked_keys_do_not_change_output(function: str) -> None:
    query, key, value = random_heads()
    visible = random_visible()
    visible[..., -1] = False
    output, _ = attend(function, query, key, value, visible)
    output.square().sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    assert key.grad[:, :, -1].eq(0).all()
    assert value.grad[:, :, -1].eq(0).all()


def test_eager_gradient_matches_torch() -> None:
    states = random_heads(2)
    visible = random_visible()
    visible[0, :, 2] = False
    direction = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((attend(function, *states, visible)[0] * direction).sum(), states)
        for function in FUNCTIONS
    ]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, **EXACT)


def test_dropout_applies_to_attention_weights() -> None:
    query, key, value = random_heads()
    _, kept = attend("eager", query, key, value, None)
    output, dropped = attend("eager", query, key, value, None, dropout=0.25)
    assert kept is not None
    assert dropped is not None
    zeros = dropped == 0
    assert 0.1 < zeros.double().mean() < 0.4
    torch.testing.assert_close(dropped, (kept / 0.75).masked_fill(zeros, 0), **EXACT)
    torch.testing.assert_close(output.transpose(1, 2), dropped @ value, **EXACT)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", FUNCTIONS)
def test_dropout_only_in_training(attention: str, training: bool, rate: float) -> None:
    config = tiny_config(attention_dropout=rate, attn_implementation=attention)
    layer = MultiHeadAttention(config, layer_idx=0).train(training)
    states = torch.randn(2, 5, 24)
    same = torch.equal(layer(states)[0], layer(states)[0])
    assert same == (rate == 0 or not training)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_matches_torch_multi_head_attention(cross: bool) -> None:
    layer = shake(MultiHeadAttention(tiny_config(attention_bias=True), layer_idx=0).double())
    hidden, memory = torch.randn(2, 5, 24).double(), torch.randn(2, 7, 24).double()
    looked_at, keys_mask = (memory, mask_of([7, 4])) if cross else (hidden, mask_of([5, 3]))
    visible = keys_mask.bool()[:, None, None].expand(-1, 1, 5, -1)
    bias = torch.zeros(visible.shape).double().masked_fill(~visible, torch.finfo(torch.float64).min)
    context = AttentionContext(bias)
    output, weights = layer(hidden, NO_CONTEXT, memory, context) if cross else layer(hidden, context)
    expected, expected_weights = F.multi_head_attention_forward(
        *(states.transpose(0, 1) for states in (hidden, looked_at, looked_at)),
        embed_dim_to_check=24,
        num_heads=4,
        in_proj_weight=torch.cat([p.weight for p in (layer.q_proj, layer.k_proj, layer.v_proj)]),
        in_proj_bias=torch.cat([p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj)]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=layer.o_proj.weight,
        out_proj_bias=layer.o_proj.bias,
        key_padding_mask=keys_mask == 0,
        average_attn_weights=False,
    )
    torch.testing.assert_close(output, expected.transpose(0, 1), **EXACT)
    torch.testing.assert_close(weights, expected_weights, **EXACT)


@pytest.mark.parametrize("key_value_heads", [2, 1])
@pytest.mark.parametrize("attention", FUNCTIONS)
def test_grouped_queries_match_repeated_heads(attention: str, key_value_heads: int) -> None:
    """Compare grouped-query attention with multi-head attention whose key and value heads are repeated."""
    overrides = {"attn_implementation": attention, "position_embedding_type": "rotary"}
    grouped = tiny_model(num_key_value_heads=key_value_heads, **overrides)
    full = tiny_model(TriviumForConditionalGeneration, **overrides)
    repeated = {
        name: tensor.unflatten(0, (key_value_heads, 6)).repeat_interleave(4 // key_value_heads, dim=0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else tensor
        for name, tensor in grouped.state_dict().items()
    }
    full.load_state_dict(repeated)
    ids = torch.randint(3, 31, (2, 5))
    inputs = {"input_ids": ids, "attention_mask": mask_of([5, 3]), "decoder_input_ids": ids}
    torch.testing.assert_close(grouped(**inputs).logits, full(**inputs).logits, **EXACT)


def test_rotation_matches_llama() -> None:
    config = tiny_config(position_embedding_type="rotary", rope_theta=500.0)
    query, key, _ = random_heads()
    positions = torch.tensor([[0, 1, 5, 1000, 31]])
    _, rotation = RotaryPositions(config).double()(query, positions)
    assert rotation is not None
    frequencies = 500.0 ** -(torch.arange(0, 6, 2).double() / 6)
    angles = positions.double()[..., None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    expected = apply_rotary_pos_emb(query, key[:, :, :5], angles.cos(), angles.sin())
    torch.testing.assert_close(rotate(query, rotation), expected[0], **EXACT)
    torch.testing.assert_close(rotate(key[:, :, :5], rotation), expected[1], **EXACT)


def test_self_attention_matches_llama() -> None:
    """Compare with Llama's grouped-query attention, rotary positions and causal mask; parameter names match too."""
    config = tiny_config(position_embedding_type="rotary", num_key_value_heads=2)
    llama_config = LlamaConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager"
    )
    layer, llama = MultiHeadAttention(config, 0, is_causal=True).double(), LlamaAttention(llama_config, 0).double()
    llama.load_state_dict(layer.state_dict())
    hidden, positions = torch.randn(2, 5, 24).double(), torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 20, 21]])
    bias = torch.full((1, 1, 5, 5), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    _, rotation = RotaryPositions(config)(hidden, positions)
    assert rotation is not None
    output, weights = layer(hidden, AttentionContext(bias, rotation))
    rotation = tuple(part[:, 0] for part in rotation)  # Llama's sines and cosines have no head dimension.
    expected, expected_weights = llama(hidden, position_embeddings=rotation, attention_mask=bias)
    torch.testing.assert_close(output, expected, **LLAMAS)
    torch.testing.assert_close(weights, expected_weights, **LLAMAS)


def test_rotated_scores_depend_on_relative_position() -> None:
    layer = RotaryPositions(tiny_config(position_embedding_type="rotary"))
    query, key, _ = random_heads()
    key = key[:, :, :5]

    def scores(first: int) -> torch.Tensor:
        rotation = layer(query, torch.arange(first, first + 5)[None])[1]
        return rotate(query, rotation) @ rotate(key, rotation).transpose(2, 3)

    for shift in (1, 100, 10_000):
        torch.testing.assert_close(scores(shift), scores(0), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(scores(0), query @ key.transpose(2, 3)), "nothing was rotated"


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_qk_norm_normalizes_queries_and_keys_before_the_rotation(cross: bool) -> None:
    config = tiny_config(qk_norm=True, num_key_value_heads=2, position_embedding_type="rotary", norm_eps=0.1)
    layer = shake(MultiHeadAttention(config, layer_idx=0).double())
    hidden, memory = torch.randn(2, 5, 24).double(), torch.randn(2, 7, 24).double()
    looked_at = memory if cross else hidden

    def heads(projection: torch.nn.Module, states: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        split = projection(states).unflatten(-1, (-1, 6)).transpose(1, 2)
        return split if weight is None else split / (split.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight

    assert layer.q_norm is not None
    assert layer.k_norm is not None
    query, key = heads(layer.q_proj, hidden, layer.q_norm.weight), heads(layer.k_proj, looked_at, layer.k_norm.weight)
    _, rotation = RotaryPositions(config).double()(hidden, torch.arange(5)[None])
    assert rotation is not None
    if not cross:
        query, key = rotate(query, rotation), rotate(key, rotation)
    value = heads(layer.v_proj, looked_at)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2).flatten(2)
    output, _ = layer(hidden, AttentionContext(rotation=rotation), memory if cross else None)
    torch.testing.assert_close(output, layer.o_proj(expected), **EXACT)


def test_projections_have_no_bias_by_default() -> None:
    without, with_biases = (MultiHeadAttention(tiny_config(attention_bias=b), layer_idx=0) for b in (False, True))
    assert not [name for name, _ in without.named_parameters() if "bias" in name]
    assert len([name for name, _ in with_biases.named_parameters() if "bias" in name]) == 4
