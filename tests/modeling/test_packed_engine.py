"""Run models like vLLM's transformers backend: packed sequences without a mask, and the engine's own attention.

The backend creates the model with `AutoModel`, registers its own attention function, and concatenates all requests
into one row. There is no mask and no cache: its attention objects, passed as `attention_instances`, know the requests.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import POSITIONS, random_ids, tiny_model
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trivium import TriviumDecoderModel, TriviumEncoderModel, TriviumForSequenceClassification

LENGTHS = [11, 30, 1, 29]  # together longer than `max_position_embeddings`
STACKS: dict[type[PreTrainedModel], dict[str, int]] = {
    TriviumDecoderModel: {"encoder_layers": 0},
    TriviumEncoderModel: {"decoder_layers": 0},
}


class PackedAttention:
    """Attention of one layer, within each sequence of a packed row."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __call__(self, module: nn.Module, *states: torch.Tensor) -> torch.Tensor:
        sequences = zip(*(state.split(self.lengths, dim=2) for state in states), strict=True)
        outputs = [
            nn.functional.scaled_dot_product_attention(*sequence, is_causal=module.is_causal, enable_gqa=True)
            for sequence in sequences
        ]
        return torch.cat(outputs, dim=2)[0].transpose(0, 1).flatten(1)  # (tokens, d_model), without a batch dimension


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attention_instances: dict[int, PackedAttention],
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert attention_mask is None
    return attention_instances[module.layer_idx](module, query, key, value), None


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    ALL_ATTENTION_FUNCTIONS.register("engine", packed_attention_forward)
    yield
    del ALL_ATTENTION_FUNCTIONS._global_mapping["engine"]


def serve(model: nn.Module, lengths: list[int], **inputs: torch.Tensor) -> torch.Tensor:
    """Run a base model as the engine does; pass `input_ids` or `inputs_embeds` of shape (tokens, ...)."""
    model.set_attn_implementation("engine")
    positions = torch.cat([torch.arange(length) for length in lengths])
    attention = {index: PackedAttention(lengths) for index in range(model.config.num_hidden_layers)}
    outputs = model(
        **{name: value[None] for name, value in inputs.items()},
        position_ids=positions[None],
        use_cache=False,
        attention_instances=attention,
        return_dict=False,
    )
    return outputs[0][0]


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model_class", STACKS)
@torch.no_grad()
def test_packed_requests_match_single_texts(
    model_class: type[PreTrainedModel], positions: str, norm_position: str
) -> None:
    options = {"position_embedding_type": positions, "norm_position": norm_position, "num_key_value_heads": 2}
    model = tiny_model(model_class, **STACKS[model_class], **options).float()
    ids = random_ids(sum(LENGTHS))
    expected = [model(text[None]).last_hidden_state[0] for text in ids.split(LENGTHS)]
    torch.testing.assert_close(serve(model, LENGTHS, input_ids=ids), torch.cat(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", STACKS)
@torch.no_grad()
def test_pipeline_stages_match_whole_model(model_class: type[PreTrainedModel]) -> None:
    """The engine replaces modules that belong to other pipeline stages with identities, as `_pp_plan` specifies."""
    model = tiny_model(
        model_class, **STACKS[model_class], position_embedding_type="rotary", norm_position="pre"
    ).float()
    stack = next(model.children())
    ids = random_ids(sum(LENGTHS))
    expected = serve(model, LENGTHS, input_ids=ids)
    names = [name.split(".")[-1] for name in model._pp_plan]
    assert names == ["embed_tokens", "layers", "norm"]

    def set_layers(*kept: int) -> None:
        for index, layer in enumerate(layers):
            stack.layers[index] = layer if index in kept else FirstArgument()

    layers, norm = list(stack.layers), stack.norm
    set_layers(0)
    stack.norm = FirstArgument()
    states = serve(model, LENGTHS, input_ids=ids)
    set_layers(*range(1, len(layers)))
    stack.norm, stack.embed_tokens = norm, FirstArgument()
    torch.testing.assert_close(serve(model, LENGTHS, inputs_embeds=states), expected)


class FirstArgument(nn.Module):
    """Identity that ignores all arguments but the first."""

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return states


@pytest.mark.parametrize(
    "options",
    [{"position_embedding_type": "learned"}, {"position_embedding_type": "rotary", "normalize_embedding": True}],
)
def test_no_plan_where_later_stages_would_embed_again(options: dict[str, Any]) -> None:
    assert not tiny_model(TriviumDecoderModel, encoder_layers=0, **options)._pp_plan


@pytest.mark.slow
@torch.no_grad()
def test_packed_requests_compile_as_one_graph() -> None:
    """The length check of learned positions must not break the graph by reading a value from the device."""
    model = tiny_model(TriviumDecoderModel, encoder_layers=0, position_embedding_type="learned").float()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    compiled.config, compiled.set_attn_implementation = model.config, model.set_attn_implementation
    for lengths in (LENGTHS, [40, 40, 7]):
        ids = random_ids(sum(lengths))
        torch.testing.assert_close(serve(compiled, lengths, input_ids=ids), serve(model, lengths, input_ids=ids))


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@torch.no_grad()
def test_classification_head_takes_pooled_states(pooling: str) -> None:
    """The engine pools the states, and calls the head with shape (texts, 1, d_model) and without a mask."""
    model = tiny_model(TriviumForSequenceClassification, decoder_layers=0, num_labels=3, classifier_pooling=pooling)
    ids = random_ids(4, 6)
    states = model.model(ids).last_hidden_state
    pooled = {"mean": states.mean(dim=1), "max": states.amax(dim=1), "cls": states[:, 0]}[pooling]
    torch.testing.assert_close(model.classifier(pooled[:, None]), model(ids).logits)
