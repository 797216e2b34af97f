"""Products of few rows with a large matrix: as torch's own, whatever number of threads reads the matrix."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trivium.modeling.linear import FEW_ROWS, LARGE, Linear, multiplies_few_rows

WIDTH = 64


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """A number of threads, which is given back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def large(bias: bool, width_out: int = LARGE // WIDTH) -> Linear:
    """A layer with random weights in double precision."""
    torch.manual_seed(0)
    layer = Linear(WIDTH, width_out, bias=bias).double()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts a matrix was multiplied in, each time."""
    parts: list[int] = []
    for name, place in (("bmm", 0), ("baddbmm", 1)):

        def counted(*args: torch.Tensor, product: object = getattr(torch, name), place: int = place) -> torch.Tensor:
            parts.append(len(args[place]))
            return product(*args)  # type: ignore[operator]

        monkeypatch.setattr(torch, name, counted)
    return parts


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="only MKL's products are split")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (8, 1, WIDTH)])
def test_few_rows_are_multiplied_in_parts(threads: int, splits: list[int], bias: bool, shape: tuple[int, ...]) -> None:
    layer, states = large(bias), torch.randn(shape).double()
    with torch.no_grad():
        product = layer(states)
    torch.testing.assert_close(product, nn.functional.linear(states, layer.weight, layer.bias), rtol=0, atol=1e-12)
    assert product.is_contiguous()
    assert splits == [threads if threads != 3 else 1], "2,048 rows of the matrix are not divisible by three"


def test_any_number_of_rows_gives_what_torch_gives(splits: list[int]) -> None:
    layer = large(bias=True)
    for rows in range(2 * FEW_ROWS):
        states = torch.randn(rows, 2, WIDTH).double()[:, :1]  # with gaps between the rows
        with torch.inference_mode():
            expected = nn.functional.linear(states, layer.weight, layer.bias)
            torch.testing.assert_close(layer(states), expected, rtol=0, atol=1e-12)
    assert len(splits) in (0, FEW_ROWS)


def test_where_the_product_is_torchs_own(splits: list[int]) -> None:
    layer, states = large(bias=True), torch.randn(1, WIDTH).double()
    layer(states).sum().backward()
    expected = torch.ones(len(layer.weight), 1).double() @ states
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, expected)
    with torch.no_grad():
        torch.compile(layer, backend="eager", fullgraph=True)(states)
        torch.jit.trace(layer, states, check_trace=False)
        large(bias=True, width_out=LARGE // WIDTH - 1)(states)
        layer(torch.randn(FEW_ROWS + 1, WIDTH).double())
        large(bias=True).bfloat16()(states.bfloat16())
        assert not multiplies_few_rows(states, layer.weight.data), "weights of another kind, such as quantized ones"
        assert not multiplies_few_rows(states.to("meta"), nn.Parameter(layer.weight.to("meta")))
    assert not splits


def test_weights_that_lie_otherwise_in_memory() -> None:
    layer, states = large(bias=True), torch.randn(2, WIDTH).double()
    with torch.no_grad():
        expected = layer(states)
        layer.weight.data = layer.weight.data.T.contiguous().T
        torch.testing.assert_close(layer(states), expected, rtol=0, atol=1e-12)


def test_a_row_of_another_width_is_refused(splits: list[int]) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError):
        large(bias=False)(torch.randn(1, 2 * WIDTH).double())
