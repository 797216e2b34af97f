"""Test resizing the vocabulary: all matrices are resized, tied or not; a model with two vocabularies is rejected."""

import pytest
import torch

from trivium import TriviumConfig, TriviumForConditionalGeneration, TriviumModel

SIZE = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 8,
}
CLASSES = {TriviumModel: 2, TriviumForConditionalGeneration: 3}  # Number of vocabulary matrices if they are not tied.


@pytest.mark.parametrize("new_size", [27, 11])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", CLASSES)
def test_all_matrices_of_a_vocabulary_are_resized(model_class, tied, new_size, tmp_path):
    torch.manual_seed(0)
    model = model_class(TriviumConfig(**SIZE, tie_word_embeddings=tied)).eval()
    matrices = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    before = [model.base_model.get_parameter(name).detach().clone() for name in matrices]

    embeddings = model.resize_token_embeddings(new_size)

    assert embeddings is model.get_input_embeddings()
    assert model.config.vocab_size == model.config.target_vocab_size == new_size
    kept = min(new_size, 20)
    for name, old in zip(matrices, before, strict=True):
        assert model.base_model.get_parameter(name).shape == (new_size, 8)
        torch.testing.assert_close(model.base_model.get_parameter(name)[:kept], old[:kept])
    parameters = {id(p) for name, p in model.named_parameters() if "embed_tokens" in name or "lm_head" in name}
    assert len(parameters) == (1 if tied else CLASSES[model_class])

    ids = torch.tensor([[3, new_size - 1]])
    expected = model(input_ids=ids, decoder_input_ids=ids)[0]
    assert model_class is TriviumModel or expected.shape[-1] == new_size
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        model_class.from_pretrained(tmp_path)(input_ids=ids, decoder_input_ids=ids)[0], expected
    )


def test_pad_to_multiple_of_resizes_all_matrices():
    model = TriviumForConditionalGeneration(TriviumConfig(**SIZE, tie_word_embeddings=False))
    model.resize_token_embeddings(pad_to_multiple_of=16)
    assert model.config.vocab_size == model.lm_head.out_features == 32
    assert len(model.model.encoder.embed_tokens.weight) == len(model.model.decoder.embed_tokens.weight) == 32


@pytest.mark.parametrize("model_class", CLASSES)
def test_two_vocabularies_are_refused(model_class):
    model = model_class(TriviumConfig(**SIZE, decoder_vocab_size=30))
    with pytest.raises(ValueError, match=r"vocab_size=20.*decoder_vocab_size=30"):
        model.resize_token_embeddings(27)
    assert len(model.get_input_embeddings().weight) == 20
