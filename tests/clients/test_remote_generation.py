"""Test features of transformers' `generate()` on saved folders, with the package absent."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import EOS, PAD, random_ids, tiny_model

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration

pytestmark = pytest.mark.slow

DECODER = f"""
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
model = AutoModelForCausalLM.from_pretrained("saved", trust_remote_code=True)
ids = torch.load("ids.pt")
config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id={EOS}, pad_token_id={PAD})
early = model.generate(ids[:1], max_new_tokens=8, assistant_early_exit=1)
engine = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=8)
outputs = model.generate_batch(ids.tolist(), config, continuous_batching_config=engine)
assert all(output.error is None for output in outputs.values())
torch.save([early, [list(output.generated_tokens) for output in outputs.values()]], "result.pt")
"""
TRANSLATOR = """
from transformers import AutoModelForSeq2SeqLM
from transformers.generation.streamers import BaseStreamer

class Recorder(BaseStreamer):
    def __init__(self): self.values = []
    def put(self, value): self.values.append(value)
    def end(self): pass

model = AutoModelForSeq2SeqLM.from_pretrained("saved", trust_remote_code=True)
ids, streamer = torch.load("ids.pt"), Recorder()
options = {"max_new_tokens": 8, "num_beams": 3}
streamed = model.generate(ids, streamer=streamer, **options)
prompt, *steps = streamer.values
assert torch.equal(torch.cat((prompt, torch.stack(steps, dim=1)), dim=1), streamed)
quantized = model.generate(ids, cache_implementation="quantized", cache_config={"backend": "fp8"}, **options)
torch.save([streamed, quantized], "result.pt")
"""


def test_continuous_batching_and_early_exit(tmp_path: Path, without_trivium: Callable[[str], list]) -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, position_embedding_type="rotary").float()
    ids = random_ids(3, 6)
    model.save_pretrained(tmp_path / "saved")
    torch.save(ids, tmp_path / "ids.pt")
    early, batched = without_trivium(DECODER)
    assert torch.equal(early, model.generate(ids[:1], max_new_tokens=8))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD}
    assert batched == [model.generate(row[None], **options)[0, 6:].tolist() for row in ids]


def test_beams_are_streamed_and_cache_is_quantized(tmp_path: Path, without_trivium: Callable[[str], list]) -> None:
    model = tiny_model(TriviumForConditionalGeneration).float()
    ids = random_ids(2, 6)
    model.save_pretrained(tmp_path / "saved")
    torch.save(ids, tmp_path / "ids.pt")
    streamed, quantized = without_trivium(TRANSLATOR)
    expected = model.generate(ids, max_new_tokens=8, num_beams=3)
    assert torch.equal(streamed, expected)
    assert torch.equal(quantized, expected)
