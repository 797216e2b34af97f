"""Test the inlined single-token layers: they match the modules, and are not used for modules with custom behavior."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from searches import search, search_with_transformers
from tiny import EXACT, mask_of, random_ids, shake, tiny_config
from torch import nn

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration
from trivium.modeling import decoding_step
from trivium.modeling.decoding_step import FEW_ROWS, PlainLayers, is_plain, plain_head, project_few_rows
from trivium.modeling.feed_forward import FeedForward
from trivium.modeling.incremental_decoder import IncrementalDecoder
from trivium.modeling.layers import DecoderLayer

VARIANTS: list[dict[str, Any]] = [
    {"position_embedding_type": "sinusoidal"},
    {"position_embedding_type": "learned", "norm_position": "pre", "normalize_embedding": True},
    {"position_embedding_type": "rotary", "norm_type": "rmsnorm", "norm_position": "pre", "gated_ffn": True},
    {"position_embedding_type": "rotary", "num_key_value_heads": 1, "attention_bias": True, "qk_norm": True},
    {"attn_implementation": "sdpa", "num_key_value_heads": 1},
]


def build(is_encoder_decoder: bool, **variant: Any) -> Any:
    model_class = TriviumForConditionalGeneration if is_encoder_decoder else TriviumForCausalLM
    shape = {} if is_encoder_decoder else {"encoder_layers": 0}
    return shake(model_class(tiny_config(**shape, **variant)).double().eval())


def incremental_decoder(model: Any, num_beams: int) -> IncrementalDecoder:
    """Return an incremental decoder after the prefill of several prompts, some of them padded."""
    torch.manual_seed(0)
    mask = mask_of([3, 5])
    rows = {"num_beams": num_beams}
    if model.config.is_encoder_decoder:
        encoded = model.model.encoder(input_ids=random_ids(2, 5), attention_mask=mask)
        mask, encoded = (tensor.repeat_interleave(num_beams, dim=0) for tensor in (mask, encoded[0]))
        rows |= {"attention_mask": mask, "encoder_outputs": (encoded,)}
        prompts = torch.ones(2, 1, dtype=torch.long)
    else:
        rows["attention_mask"] = mask.flip(1).repeat_interleave(num_beams, dim=0)
        prompts = random_ids(2, 5)
    decoder = IncrementalDecoder(model, prompts.repeat_interleave(num_beams, dim=0), **rows)
    decoder.prefill()
    return decoder


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("is_encoder_decoder", "num_beams"), [(True, 1), (True, 3), (False, 1), (False, 3)])
def test_logits_match_modules(is_encoder_decoder: bool, num_beams: int, variant: dict[str, Any]) -> None:
    model = build(is_encoder_decoder, **variant)
    plain, called = (incremental_decoder(model, num_beams) for _ in range(2))
    called.plain_layers = None
    for _ in range(3):
        tokens = random_ids(2 * num_beams)
        torch.testing.assert_close(plain.step(tokens), called.step(tokens), **EXACT)
    assert isinstance(plain.plain_layers, PlainLayers)
    assert plain.self_cache.get_seq_length() == called.self_cache.get_seq_length()


@pytest.mark.parametrize("num_beams", [1, 2])
def test_layers_are_called_for_the_prompt_only(num_beams: int) -> None:
    model, calls = build(True), []
    forward = DecoderLayer.forward

    def counted(self: DecoderLayer, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(self)
        return forward(self, *args, **kwargs)

    with patch.object(DecoderLayer, "forward", counted):
        found, search_count = search(model, input_ids=random_ids(2, 4), num_beams=num_beams, max_length=6)
    assert search_count == 1
    assert found.shape[1] > 3
    assert len(calls) == model.config.decoder_layers


class DoubledFeedForward(FeedForward):
    """A feed-forward network with an overridden `forward`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden_states)


def replace_forward(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)


CHANGES: dict[str, Callable[[DecoderLayer], Any]] = {
    "training": lambda layer: layer.feed_forward.dropout.train(),
    "hook of a projection": lambda layer: layer.self_attn.q_proj.register_forward_hook(lambda *_: None),
    "hook before a norm": lambda layer: layer.feed_forward_residual.norm.register_forward_pre_hook(lambda *_: None),
    "replaced forward": lambda layer: replace_forward(layer.feed_forward.up_proj),
    "compiled": lambda layer: layer.self_attn.compile(backend="eager"),
    "weight norm": lambda layer: nn.utils.weight_norm(layer.feed_forward.up_proj),
    "subclass": lambda layer: setattr(layer, "feed_forward", DoubledFeedForward(tiny_config())),
    "further part": lambda layer: layer.add_module("adapter", nn.Identity()),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules_are_not_plain(change: str) -> None:
    decoder = build(True).model.decoder
    assert is_plain(decoder)
    CHANGES[change](decoder.layers[-1].eval())
    assert not is_plain(decoder)


def test_wrapped_layers_are_not_plain() -> None:
    decoder = build(True).model.decoder
    decoder.layers[0] = torch.compile(decoder.layers[0], backend="eager")
    assert not is_plain(decoder)


class AddedRank(nn.Linear):
    """A subclass of the projection layer, like those of quantization and adapters."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + hidden_states.mean(dim=-1, keepdim=True)


def test_projections_of_another_type_are_called() -> None:
    model = build(False)
    for layer in model.model.decoder.layers:
        layer.self_attn.v_proj = AddedRank(24, 24).double().eval()
    assert is_plain(model.model.decoder)
    inputs = {"input_ids": random_ids(3, 4), "max_length": 10, "eos_token_id": None, "do_sample": False}
    assert torch.equal(model.generate(**inputs), model.generate(**inputs, use_cache=False))


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS])
@pytest.mark.parametrize("bias", [False, True])
def test_projection_of_few_rows_matches_linear(rows: int, bias: bool) -> None:
    linear = nn.Linear(24, 30, bias=bias).double()
    states = torch.randn(rows, 24, dtype=torch.float64)
    projected = project_few_rows(states, linear.weight, linear.bias)
    torch.testing.assert_close(projected, linear(states), **EXACT)
    assert projected.is_contiguous()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_projection_of_few_rows_finds_the_same_tokens(monkeypatch: pytest.MonkeyPatch, num_beams: int) -> None:
    monkeypatch.setattr(decoding_step, "MIN_WEIGHTS", 0)
    model = shake(TriviumForConditionalGeneration(tiny_config(vocab_size=30)).eval(), std=0.5)
    inputs = {"input_ids": random_ids(4, 5, vocab_size=30), "num_beams": num_beams, "max_length": 12}
    rows = []
    project = project_few_rows
    monkeypatch.setattr(decoding_step, "project_few_rows", lambda x, *rest: rows.append(len(x)) or project(x, *rest))
    found, search_count = search(model, **inputs)
    assert search_count == 1
    assert torch.equal(found, search_with_transformers(model, **inputs))
    assert rows
    assert max(rows) <= FEW_ROWS


HEADS: dict[str, Callable[[], nn.Module]] = {
    "odd vocabulary": lambda: nn.Linear(24, 31),
    "half precision": lambda: nn.Linear(24, 30).bfloat16(),
    "another type": lambda: AddedRank(24, 30),
    "hook": lambda: hooked(nn.Linear(24, 30)),
}


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize("kind", HEADS)
def test_other_heads_are_called(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(decoding_step, "MIN_WEIGHTS", 0)
    head = HEADS[kind]().eval()
    assert plain_head(head) is head
    ordinary = nn.Linear(24, 30).eval()
    assert plain_head(ordinary) is not ordinary
