"""Test weights that Accelerate offloads to disk until their layer is called."""

import pytest
import torch
from accelerate.utils import send_to_device

from trivium import TriviumConfig, TriviumForConditionalGeneration
from trivium.modeling.attention import AttentionContext
from trivium.modeling.padding import RealTokens

SIZE = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 8,
}


@pytest.mark.parametrize(
    ("choices", "device_map"),
    [
        ({}, {"": "disk"}),
        ({"tie_word_embeddings": False}, {"model.encoder": "disk", "model.decoder": "cpu", "lm_head": "disk"}),
    ],
)
def test_disk_offloaded_logits_match_in_memory(choices, device_map, tmp_path):
    model = TriviumForConditionalGeneration(TriviumConfig(**SIZE, **choices)).eval()
    model.save_pretrained(tmp_path / "model")
    offloaded = TriviumForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights"
    )
    assert offloaded.model.encoder.layers[0].feed_forward.up_proj.weight.device.type == "meta"
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(
        offloaded(input_ids=ids, decoder_input_ids=ids).logits, model(input_ids=ids, decoder_input_ids=ids).logits
    )


def test_accelerate_moves_tensors_of_a_context():
    """Accelerate must move the tensors of the context, since it recurses into a NamedTuple, unlike a dataclass."""
    tokens = RealTokens(torch.tensor([[1, 1, 0]]))
    context = AttentionContext(torch.zeros(1, 1, 3, 3), (torch.ones(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)), tokens)
    moved = send_to_device(context, "meta")
    assert isinstance(moved, AttentionContext)
    assert [tensor.device.type for tensor in (moved.mask, *moved.rotation)] == ["meta"] * 3
    assert moved.tokens is tokens  # indices stay on their states' device
