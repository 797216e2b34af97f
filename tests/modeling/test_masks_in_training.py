"""Test training steps under `torch.compile`."""

from typing import Any

import pytest
import torch
from packaging import version
from tiny import EXACT, random_ids, tiny_model
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumForMaskedLM


@pytest.mark.skipif(version.parse(torch.__version__) < version.parse("2.13"), reason="needs torch 2.13")
@pytest.mark.slow(reason="traces three models: many seconds")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile calls deprecated torch functions
@pytest.mark.parametrize(
    ("model_class", "shape"),
    [
        (TriviumForConditionalGeneration, {}),
        (TriviumForMaskedLM, {"decoder_layers": 0}),
        (TriviumForCausalLM, {"encoder_layers": 0}),
    ],
)
def test_compiled_step_without_padding_has_no_masks(model_class: type[nn.Module], shape: dict[str, Any]) -> None:
    """With a mask, flash attention could not be used. torch before 2.13 creates one nevertheless."""
    model = tiny_model(model_class, dropout=0.0, attn_implementation="sdpa", **shape).train()
    ids = random_ids(2, 7)
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    attention: list[torch.fx.Node] = []

    def backend(graph: GraphModule, inputs: list[torch.Tensor]) -> GraphModule:
        attention.extend(graph.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention))
        return graph

    found = torch.compile(model, backend=backend, fullgraph=True)(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(found, expected, **EXACT)
    assert attention
    assert all(node.kwargs.get("attn_mask") is None for node in attention)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="caches are offloaded from a GPU")
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_cross_attention_reads_an_offloaded_cache(implementation: str) -> None:
    model = tiny_model(attn_implementation="sdpa")
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    ids = random_ids(2, 7)
    expected = model.generate(ids, **options)
    found = model.cuda().generate(ids.cuda(), **options, cache_implementation=implementation)
    assert torch.equal(found.cpu(), expected)
