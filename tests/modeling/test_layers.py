"""Test all layers except attention: norms, residuals, feed-forward, embeddings; and their initialization."""

import math

import pytest
import torch
from tiny import NORM_POSITIONS, NORMS, all_variants, copying_batch, shake, tiny_config
from torch import nn

from trivium import TriviumForConditionalGeneration
from trivium.modeling.embeddings import TokenEmbedding
from trivium.modeling.feed_forward import FeedForward
from trivium.modeling.layers import DecoderLayer, EncoderLayer, Residual
from trivium.modeling.normalization import LayerNorm, RMSNorm

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize(
    ("norm_class", "reference_class"), [(LayerNorm, nn.LayerNorm), (RMSNorm, nn.RMSNorm)], ids=["layernorm", "rmsnorm"]
)
def test_norms_match_torch(norm_class: type[nn.Module], reference_class: type[nn.Module]) -> None:
    config = tiny_config(norm_eps=0.25)  # large enough that a missing epsilon would be noticed
    norm, reference = shake(norm_class(config).double()), reference_class(24, eps=0.25, dtype=torch.float64)
    reference.load_state_dict(norm.state_dict())
    states = torch.randn(2, 3, 24).double() * 2 + 1
    torch.testing.assert_close(norm(states), reference(states), **EXACT)


def test_norms_match_formulas() -> None:
    config = tiny_config(norm_eps=0.25)
    states = torch.randn(24).double() + 1
    values = states.tolist()
    mean = sum(values) / 24
    variance = sum((x - mean) ** 2 for x in values) / 24
    expected = [(x - mean) / math.sqrt(variance + 0.25) for x in values]
    assert LayerNorm(config).double()(states).tolist() == pytest.approx(expected, rel=1e-12)
    mean_square = sum(x * x for x in values) / 24
    expected = [x / math.sqrt(mean_square + 0.25) for x in values]
    assert RMSNorm(config).double()(states).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("norm_type", NORMS)
def test_residual_norm_position(norm_type: str) -> None:
    """Compare with Norm(x + Sublayer(x)) for post-norm (section 3.1) and x + Sublayer(Norm(x)) for pre-norm."""
    states = torch.randn(2, 3, 24).double()
    sublayer = nn.Linear(24, 24).double()
    for position in NORM_POSITIONS:
        residual = shake(Residual(tiny_config(norm_position=position, norm_type=norm_type)).double())
        norm = residual.norm
        expected = norm(states + sublayer(states)) if position == "post" else states + sublayer(norm(states))
        torch.testing.assert_close(residual(states, sublayer), expected, **EXACT)


@pytest.mark.parametrize("position", NORM_POSITIONS)
def test_residual_dropout_applies_to_sublayer(position: str) -> None:
    """Dropout applies to the sublayer's output, before the residual is added (section 5.4)."""
    residual = Residual(tiny_config(norm_position=position, dropout=0.5)).double()
    residual.norm = nn.Identity()
    states = torch.randn(2, 3, 24).double()
    added = residual(states, torch.ones_like) - states
    torch.testing.assert_close(added, torch.where(added > 1, 2.0, 0.0).double(), **EXACT)
    assert 0 < (added > 1).double().mean() < 1
    torch.testing.assert_close(residual.eval()(states, torch.ones_like), states + 1, **EXACT)


def test_feed_forward_matches_equation_2() -> None:
    layer = shake(FeedForward(tiny_config()).double())
    states = torch.randn(2, 3, 24).double()
    inner = (states @ layer.up_proj.weight.T + layer.up_proj.bias).clamp(min=0)
    torch.testing.assert_close(layer(states), inner @ layer.down_proj.weight.T + layer.down_proj.bias, **EXACT)


def test_gated_feed_forward_is_swiglu() -> None:
    config = tiny_config(gated_ffn=True, activation_function="silu", ffn_bias=False)
    layer = FeedForward(config).double()
    states = torch.randn(2, 3, 24).double()
    gate = states @ layer.gate_proj.weight.T
    inner = gate / (1 + (-gate).exp()) * (states @ layer.up_proj.weight.T)
    torch.testing.assert_close(layer(states), inner @ layer.down_proj.weight.T, **EXACT)
    assert not [name for name, _ in layer.named_parameters() if "bias" in name]


def test_feed_forward_is_position_wise() -> None:
    layer = FeedForward(tiny_config()).double()
    states = torch.randn(2, 5, 24).double()
    order = torch.randperm(5)
    torch.testing.assert_close(layer(states[:, order]), layer(states)[:, order], **EXACT)


def test_activation_dropout() -> None:
    layer = FeedForward(tiny_config(activation_dropout=0.5))
    states = torch.randn(2, 5, 24)
    assert not torch.equal(layer(states), layer(states))
    layer.eval()
    assert torch.equal(layer(states), layer(states))


@pytest.mark.parametrize(("scaled", "factor"), [(True, math.sqrt(24)), (False, 1.0)])
def test_embeddings_are_scaled(scaled: bool, factor: float) -> None:
    embedding = TokenEmbedding(31, tiny_config(scale_embedding=scaled)).double()
    ids = torch.tensor([[3, 5], [5, 7]])
    torch.testing.assert_close(embedding(ids), embedding.weight[ids] * factor, **EXACT)


def test_layers_match_figure_1() -> None:
    encoder, decoder = EncoderLayer(tiny_config(), 0), DecoderLayer(tiny_config(), 0)
    assert [name for name, _ in encoder.named_children()] == [
        *("self_attn", "self_attn_residual", "feed_forward", "feed_forward_residual")
    ]
    assert [name for name, _ in decoder.named_children()] == [
        *("self_attn", "self_attn_residual", "cross_attn", "cross_attn_residual"),
        *("feed_forward", "feed_forward_residual"),
    ]
    assert [layer.is_causal for layer in (encoder.self_attn, decoder.self_attn, decoder.cross_attn)] == [
        *(False, True, False)
    ]


# --- Initialization ---


@pytest.fixture(scope="module")
def fresh() -> TriviumForConditionalGeneration:
    torch.manual_seed(0)
    shape = {"d_model": 128, "ffn_dim": 256, "vocab_size": 500, "num_key_value_heads": 2}
    return TriviumForConditionalGeneration(
        tiny_config(**shape, attention_bias=True, position_embedding_type="learned", tie_word_embeddings=False)
    )


def test_projections_are_glorot_uniform(fresh: TriviumForConditionalGeneration) -> None:
    linears = [(name, module) for name, module in fresh.named_modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 * (4 + 2) + 3 * (8 + 2) + 1
    for name, linear in linears:
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert linear.weight.abs().max() <= bound, name
        assert linear.weight.abs().max() > 0.99 * bound, name
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name
        assert linear.weight.mean().abs() < 0.02 * bound, name
        assert linear.bias is None or linear.bias.eq(0).all(), name


def test_embedding_variance_is_1_over_d_model(fresh: TriviumForConditionalGeneration) -> None:
    embeddings = [(name, module) for name, module in fresh.named_modules() if isinstance(module, nn.Embedding)]
    assert len(embeddings) == 4  # The token and position embeddings of each stack.
    for name, embedding in embeddings:
        assert embedding.weight.std().item() == pytest.approx(128**-0.5, rel=0.05), name


@pytest.mark.parametrize("norm_type", NORMS)
def test_norms_are_initialized_to_identity(norm_type: str) -> None:
    model = TriviumForConditionalGeneration(tiny_config(norm_type=norm_type, norm_position="pre"))
    norms = [module for module in model.modules() if isinstance(module, LayerNorm | RMSNorm)]
    assert len(norms) == 2 * 2 + 3 * 3 + 2
    for norm in norms:
        assert norm.weight.eq(1).all()
        assert norm_type == "rmsnorm" or norm.bias.eq(0).all()


def test_initialization_is_reproducible_with_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(TriviumForConditionalGeneration(tiny_config()).state_dict())
    first, same, other = states
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@all_variants
def test_initial_loss_is_near_log_vocab_size(variant: dict[str, str]) -> None:
    """The initial loss must be close to log V, the loss of a uniform prediction, so initial logits are small."""
    model = TriviumForConditionalGeneration(
        tiny_config(**variant, d_model=64, vocab_size=1000, label_smoothing=0.0)
    ).eval()
    with torch.no_grad():
        loss = model(**copying_batch(sentences=32, vocab_size=1000)).loss.item()
    assert abs(loss - math.log(1000)) < 1.5
