"""Test the properties of sinusoids (section 3.5), and saving and loading with every kind of positions."""

import math
from pathlib import Path

import pytest
import torch
from tiny import POSITIONS, mask_of, random_ids, tiny_config, tiny_model

from trivium import TriviumForConditionalGeneration
from trivium.modeling.positions import LearnedPositions, angles, sinusoidal_encoding, token_positions

D_MODEL = 24
MANY = torch.arange(5000)[None]


def encode(position_ids: torch.Tensor, d_model: int = D_MODEL) -> torch.Tensor:
    return sinusoidal_encoding(position_ids, d_model, torch.float64)


def test_sinusoids_match_formula() -> None:
    table = encode(MANY)[0]
    for position in (0, 1, 2, 17, 999, 4999):
        for i in range(D_MODEL // 2):
            angle = position / 10000 ** (2 * i / D_MODEL)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-11)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-11)


def test_sinusoids_are_bounded_and_unique() -> None:
    table = encode(MANY)[0]
    assert table.abs().max() <= 1
    distances = torch.cdist(table, table).fill_diagonal_(math.inf)
    assert distances.min() > 0.1


@pytest.mark.parametrize("distance", [1, 7, 1000])
def test_shift_is_a_linear_map(distance: int) -> None:
    """PE(pos + k) = M_k PE(pos), where M_k rotates each pair of dimensions; this is why the paper uses sinusoids."""
    shift = torch.zeros(D_MODEL, D_MODEL, dtype=torch.float64)
    for i in range(0, D_MODEL, 2):
        angle = distance / 10000 ** (i / D_MODEL)
        sine, cosine = math.sin(angle), math.cos(angle)
        shift[i : i + 2, i : i + 2] = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)
    torch.testing.assert_close(encode(MANY + distance), encode(MANY) @ shift.T, rtol=0, atol=1e-10)


def test_wavelengths_are_geometric() -> None:
    """Wavelengths are a geometric progression from 2 pi to nearly 10000 * 2 pi."""
    d_model = 512
    wavelengths = 2 * math.pi / angles(torch.ones(1), d_model, 10000.0, torch.float64)[0]
    assert wavelengths[0].item() == pytest.approx(2 * math.pi)
    assert wavelengths[-1].item() == pytest.approx(2 * math.pi * 10000 ** (1 - 2 / d_model))
    ratios = wavelengths[1:] / wavelengths[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 10000 ** (2 / d_model)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_only_the_result(dtype: torch.dtype) -> None:
    """If angles were computed in half precision, neighboring positions around 5000 would be identical."""
    table = sinusoidal_encoding(MANY, D_MODEL, dtype)
    assert table.dtype == dtype
    torch.testing.assert_close(table.double(), encode(MANY), rtol=0, atol=torch.finfo(dtype).eps + 1e-3)


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    counted = token_positions(mask, 4, 0, mask.device)
    assert counted.tolist() == [[0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 1]]
    assert token_positions(mask, 1, 3, mask.device).tolist() == [[3], [1], [1]]
    assert token_positions(None, 2, 3, mask.device).tolist() == [[3, 4]]


@pytest.mark.parametrize("position", ["sinusoidal", "rotary"])
def test_computed_positions_have_no_length_limit(position: str) -> None:
    model = tiny_model(position_embedding_type=position, max_position_embeddings=4, encoder_layers=1, decoder_layers=1)
    ids = random_ids(1, 600)
    with torch.no_grad():
        assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


def test_learned_positions_have_a_length_limit() -> None:
    config = tiny_config(position_embedding_type="learned", max_position_embeddings=4)
    layer = LearnedPositions(config)
    positions = torch.arange(4)[None]
    states = torch.randn(2, 4, D_MODEL)
    torch.testing.assert_close(layer(states, positions)[0], states + layer.embedding.weight)
    with pytest.raises(ValueError, match=r"5 tokens.*max_position_embeddings=4"):
        layer(torch.randn(2, 5, D_MODEL), torch.arange(5)[None])


def test_packed_learned_positions_compile_to_one_graph() -> None:
    """The length check must not break the graph by reading the largest position from the device."""
    layer = LearnedPositions(tiny_config(position_embedding_type="learned", max_position_embeddings=4))
    states, positions = torch.randn(1, 6, D_MODEL), torch.tensor([[0, 1, 2, 0, 1, 2]])
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(states, positions)[0], layer(states, positions)[0])


def test_generation_stops_at_learned_positions() -> None:
    model = tiny_model(position_embedding_type="learned", max_position_embeddings=4)
    with pytest.raises(ValueError, match="max_position_embeddings=4"):
        model.generate(random_ids(1, 3), max_new_tokens=8, min_new_tokens=8)


@pytest.mark.parametrize("position", POSITIONS)
def test_output_depends_on_token_order(position: str) -> None:
    """Reversing the source must change the logits; without positions, attention ignores the token order."""
    model = tiny_model(position_embedding_type=position)
    ids = random_ids(1, 6)
    start = torch.tensor([[1]])
    with torch.no_grad():
        logits = [model(input_ids=i, decoder_input_ids=start).logits for i in (ids, ids.flip(1))]
    assert not torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_loading_initializes_all_position_tables(position: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Position tables must not be buffers: `from_pretrained` would leave them uninitialized."""
    model = tiny_model(position_embedding_type=position).float()
    assert {name.rsplit(".")[-1] for name, _ in model.named_buffers()} <= {"inv_freq", "original_inv_freq"}
    model.save_pretrained(tmp_path)
    loaded = TriviumForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")
    inputs = {"input_ids": random_ids(2, 6), "attention_mask": mask_of([6, 4]), "decoder_input_ids": random_ids(2, 5)}
    with torch.no_grad():
        logits, expected = loaded(**inputs).logits, model.to(dtype)(**inputs).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("position", POSITIONS)
def test_half_precision_is_close_to_float64(position: str) -> None:
    model = tiny_model(position_embedding_type=position)
    inputs = {"input_ids": random_ids(2, 40), "decoder_input_ids": random_ids(2, 40)}
    with torch.no_grad():
        exact = model(**inputs).logits
        rounded = model.bfloat16()(**inputs).logits.double()
    assert (rounded - exact).norm() < 0.05 * exact.norm()
