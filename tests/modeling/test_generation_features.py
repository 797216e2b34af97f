"""Test features of transformers' `generate()`: continuous batching, early exit, quantized caches, beam streaming."""

from typing import Any

import pytest
import torch
from tiny import EOS, PAD, mask_of, random_ids, tiny_model
from transformers import ContinuousBatchingConfig, GenerationConfig, TextStreamer
from transformers.cache_utils import EncoderDecoderCache, QuantizedCache
from transformers.generation.streamers import BaseStreamer

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer
from trivium.tokenization import train_tokenizer

# --- Continuous batching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "window"), [("rotary", None), ("learned", None), ("rotary", 4)])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "paged|eager"])
def test_continuous_batching_matches_generate(positions: str, window: int | None, attention: str) -> None:
    model = tiny_model(
        TriviumForCausalLM,
        encoder_layers=0,
        position_embedding_type=positions,
        num_key_value_heads=2,
        sliding_window=window,
    ).float()
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    prompts = [random_ids(length).tolist() for length in (3, 7, 5, 1)]
    expected = [model.generate(torch.tensor([ids]), config)[0, len(ids) :].tolist() for ids in prompts]
    model.set_attn_implementation(attention)
    # A step has room for fewer tokens than the prompts have, so requests queue and prefill is chunked.
    engine = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=8)
    outputs = model.generate_batch(prompts, config, continuous_batching_config=engine)
    assert [list(output.generated_tokens) for output in outputs.values()] == expected


# --- Early exit ------------------------------------------------------------------------------------------------------


# transformers itself passes both a config and arguments.
@pytest.mark.filterwarnings("ignore:Passing `generation_config`:FutureWarning")
def test_early_exit_drafts_with_first_layers() -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0)
    ids = random_ids(1, 5)
    expected = model.generate(ids, max_new_tokens=8)
    calls = [0, 0, 0]

    def count(index: int) -> Any:
        def hook(*arguments: Any) -> None:
            calls[index] += 1

        return hook

    for index, layer in enumerate(model.model.decoder.layers):
        layer.register_forward_hook(count(index))
    assert torch.equal(model.generate(ids, max_new_tokens=8, assistant_early_exit=1), expected)
    assert calls[0] > calls[1] == calls[2] > 0
    assert model.config.decoder_layers == model.model.config.decoder_layers == 3


# --- Quantized cache -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 2])
def test_decoder_of_encoder_decoder_has_quantized_cache(num_beams: int) -> None:
    """Trivium quantizes the self-attention cache of encoder-decoders, which transformers does not support.

    The test uses the backend "fp8", which needs no additional package.
    """
    model = tiny_model().float()
    ids, mask = random_ids(2, 6), mask_of([6, 4])
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": num_beams}
    expected = model.generate(ids, **options)
    caches: list[Any] = []
    model.model.decoder.register_forward_hook(lambda module, args, output: caches.append(output.cache))
    generated = model.generate(
        ids, **options, cache_implementation="quantized", cache_config={"backend": "fp8"}, return_dict_in_generate=True
    )
    assert torch.equal(generated.sequences, expected)
    assert isinstance(caches[-1], EncoderDecoderCache)
    assert isinstance(caches[-1].self_attention_cache, QuantizedCache)
    assert len(caches[-1].self_attention_cache.layers) == 3


# --- Streaming -------------------------------------------------------------------------------------------------------


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        self.values.append(value)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("in_dict", [False, True])  # False: Trivium's search; True: transformers' loop
@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_streamer_receives_best_sequences(options: dict[str, int], in_dict: bool) -> None:
    model = tiny_model()
    ids, streamer = random_ids(2, 6), Recorder()
    generated = model.generate(ids, max_new_tokens=6, streamer=streamer, return_dict_in_generate=in_dict, **options)
    sequences = generated.sequences if in_dict else generated
    assert torch.equal(sequences, model.generate(ids, max_new_tokens=6, **options))
    prompts, *steps = streamer.values
    best = sequences[:: options.get("num_return_sequences", 1)]
    assert torch.equal(torch.cat((prompts, torch.stack(steps, dim=1)), dim=1), best)
    assert streamer.ended


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(["a cat sat on the mat", "two dogs ran"] * 9, vocab_size=280, add_bos_token=True)


@pytest.mark.parametrize("model_class", [TriviumForCausalLM, TriviumForConditionalGeneration])
def test_text_streamer_prints_beams(
    model_class: type[TriviumForCausalLM], tokenizer: TriviumTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {"encoder_layers": 0} if model_class is TriviumForCausalLM else {}
    model = tiny_model(model_class, vocab_size=len(tokenizer), **layers)
    ids = tokenizer("two dogs", add_special_tokens=False, return_tensors="pt").input_ids
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generated = model.generate(ids, max_new_tokens=5, num_beams=2, streamer=streamer)
    prompt_length = ids.shape[1] if layers else 1
    expected = tokenizer.decode(generated[0, prompt_length:], skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == expected.strip()
