"""Test that `training.torch_compile=true` does not recompile the model for every batch length."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import losses_of
from torch._dynamo.utils import counters

from trivium.recipe import load_recipe
from trivium.training import train

pytestmark = pytest.mark.trains

SMALL = [
    *("inputs.max_tokens=120", "training.per_device_train_batch_size=null", "training.train_sampling_strategy=null"),
    *("model.d_model=16", "model.ffn_dim=24", "model.dropout=0.1", "training.max_steps=8", "training.logging_steps=1"),
    *("training.eval_strategy='no'", "training.save_strategy='no'", "training.warmup_steps=1"),
    *("training.report_to=none", "training.disable_tqdm=true", "training.use_cpu=true"),
    # The graphs are the same for every backend, so use the fastest one.
    *("training.torch_compile=true", "training.torch_compile_backend=eager"),
]
RECIPES = {
    "encoder-decoder": ("numbers", ["model.encoder_layers=1", "model.decoder_layers=1", "tokenizer.vocab_size=300"]),
    "encoder-only": ("trec-mlm", ["model.encoder_layers=1", "tokenizer.vocab_size=300"]),
    "decoder-only": ("shakespeare", ["model.decoder_layers=1", "inputs.packing=false", "data.whole_files=false"]),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "way",
    [
        "decoder-only",
        *(
            pytest.param(way, marks=pytest.mark.slow(reason="other architectures compile alike"))
            for way in ("encoder-decoder", "encoder-only")
        ),
    ],
)
def test_varying_lengths_compile_at_most_two_graphs(way: str, tmp_path: Path) -> None:
    """At most two graphs are compiled: one for the shape of the first batch, and one with dynamic shapes."""
    name, options = RECIPES[way]
    shapes = set()
    if way != "encoder-decoder":
        texts = tmp_path / ("texts.tsv" if way == "encoder-only" else "texts.txt")
        texts.write_text("text\n" + "\n".join("word " * (2 + i % 17) + str(i) for i in range(300)) + "\n")
        options = [*options, f"data.train={texts}", f"data.validation={texts}"]
    else:
        options = [*options, "data.max_train_samples=300", "data.max_validation_samples=10"]
    trainer = train(load_recipe(name, [*SMALL, *options, f"training.output_dir={tmp_path / 'run'}"]))
    for batch in trainer.get_train_dataloader():
        shapes.add(tuple(batch["input_ids"].shape))
    assert len(shapes) > 4
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    losses = losses_of(trainer)
    assert len(losses) == 8
    assert sum(losses[4:]) < sum(losses[:4])
