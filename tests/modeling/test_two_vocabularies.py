"""Test models whose source and target vocabularies have different sizes."""

import pytest
import torch

from trivium import TriviumConfig, TriviumForConditionalGeneration

SIZE = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 8,
}


def test_text_config_has_vocab_size_of_requested_side():
    config = TriviumConfig(**SIZE, decoder_vocab_size=30)
    assert config.get_text_config(encoder=True).vocab_size == 20
    assert config.get_text_config(decoder=True).vocab_size == 30
    assert config.get_text_config().vocab_size == 30
    assert config.get_text_config(decoder=True).num_hidden_layers == 2
    assert config.vocab_size == 20
    shared = TriviumConfig(**SIZE)
    assert shared.get_text_config() is shared
    assert shared.get_text_config(decoder=True).vocab_size == 20


@pytest.mark.parametrize("decoder_vocab_size", [11, 30])
def test_beam_search_scores_target_vocabulary(decoder_vocab_size):
    torch.manual_seed(0)
    model = TriviumForConditionalGeneration(TriviumConfig(**SIZE, decoder_vocab_size=decoder_vocab_size)).eval()
    out = model.generate(
        torch.tensor([[3, 4, 5]]), num_beams=3, max_new_tokens=5, output_scores=True, return_dict_in_generate=True
    )
    scores = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    length = (out.beam_indices >= 0).sum()
    torch.testing.assert_close(scores.sum() / length, out.sequences_scores[0])
