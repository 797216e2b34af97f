"""Pictures, against the numbers that they are drawn from."""

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from tiny import shake, tiny_config
from transformers import PreTrainedModel

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumModel,
    TriviumTokenizer,
)
from trivium.inspection import plot_attention
from trivium.tokenization import train_tokenizer

ENGLISH = ["two dogs ran across the road", "the cat sat on the mat", "birds fly south in winter"]
GERMAN = ["zwei Hunde liefen über die Straße", "die Katze saß auf der Matte", "Vögel fliegen im Winter nach Süden"]
WAYS = {
    TriviumForConditionalGeneration: {},
    TriviumForCausalLM: {"encoder_layers": 0},
    TriviumForMaskedLM: {"decoder_layers": 0},
    TriviumForSequenceClassification: {"decoder_layers": 0},
}


@pytest.fixture(scope="module", autouse=True)
def _one_seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(ENGLISH * 2 + GERMAN * 2, vocab_size=330)


def model_of(model_class: Any, tokenizer: TriviumTokenizer, **options: Any) -> PreTrainedModel:
    sizes = {"vocab_size": len(tokenizer), "attn_implementation": "sdpa", "dropout": 0.1, "attention_dropout": 0.1}
    return shake(model_class(tiny_config(**{**sizes, **WAYS.get(model_class, {}), **options})), std=0.5).train()


def drawn(figure: Figure) -> torch.Tensor:
    return torch.tensor(figure.axes[0].images[0].get_array())


def labels_of(figure: Figure) -> tuple[list[str], list[str]]:
    """Of the rows and of the columns."""
    axes = figure.axes[0]
    return [each.get_text() for each in axes.get_yticklabels()], [each.get_text() for each in axes.get_xticklabels()]


@pytest.mark.parametrize("model_class", WAYS)
def test_what_is_drawn_is_the_attention_of_the_model(
    model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer
) -> None:
    model = model_of(model_class, tokenizer)
    target = {"target": GERMAN[0]} if model.config.is_encoder_decoder else {}
    figure = plot_attention(model, tokenizer, ENGLISH[0], **target)
    assert (model.config._attn_implementation, model.training) == ("sdpa", True), "the model stays as it was"

    model.eval().set_attn_implementation("eager")
    inputs = tokenizer(ENGLISH[0], return_tensors="pt")
    source = [tokenizer.decode([token]).strip() or "␣" for token in inputs["input_ids"][0]]
    written = source
    if model.config.is_encoder_decoder:
        target_ids = tokenizer(GERMAN[0])["input_ids"]
        written = [tokenizer.decode([token]).strip() or "␣" for token in target_ids]
        # To write a token the decoder has read those before it.
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *target_ids[:-1]]])
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    layers = output.cross_attentions if model.config.is_encoder_decoder else output.attentions
    torch.testing.assert_close(drawn(figure), layers[-1][0].mean(dim=0))
    torch.testing.assert_close(drawn(figure).sum(dim=1), torch.ones(len(written)))
    assert labels_of(figure) == (written, source)
    assert "</s>" in source
    assert f"layer {len(layers)} of {len(layers)}" in figure.axes[0].get_title()


def test_an_encoder_decoder_draws_what_it_writes_itself(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer)
    model.generation_config.max_new_tokens = 6
    inputs = tokenizer(ENGLISH[1], return_tensors="pt")
    own = tokenizer.decode(model.eval().generate(**inputs)[0], skip_special_tokens=True)
    figure, expected = plot_attention(model, tokenizer, ENGLISH[1]), plot_attention(model, tokenizer, ENGLISH[1], own)
    assert torch.equal(drawn(figure), drawn(expected))
    assert labels_of(figure) == labels_of(expected)


def test_two_vocabularies_are_read_each_by_its_own() -> None:
    tokenizer = train_tokenizer(ENGLISH * 2, target_texts=GERMAN * 2, vocab_size=330, shared=False)
    model = model_of(TriviumForConditionalGeneration, tokenizer.source, decoder_vocab_size=tokenizer.target_vocab_size)
    rows, columns = labels_of(plot_attention(model, tokenizer, ENGLISH[0], GERMAN[0]))
    assert "".join(columns) == ENGLISH[0].replace(" ", "") + "</s>"
    assert "".join(rows) == GERMAN[0].replace(" ", "") + "</s>"


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_labels_can_be_read_at_any_length(tokens: int, tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer)
    figure = plot_attention(model, tokenizer, " ".join(["Winter"] * tokens), " ".join(["Winter"] * tokens))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, bbox_inches="tight")
    content.seek(0)
    height, width, _ = imread(content, format="png").shape
    assert 100 < height < 2000
    assert 200 < width < 2000
    rows, columns = figure.axes[0].get_yticklabels(), figure.axes[0].get_xticklabels()
    assert len(rows) == len(columns) == tokens + 1
    boxes = [label.get_window_extent() for label in rows]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    boxes = [label.get_window_extent() for label in columns]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_text_can_be_drawn() -> None:
    text = "$x_1$ und \\frac{\n 漢字 مرحبا 🙂"
    letters = train_tokenizer([text], vocab_size=100, algorithm="char", normalization=None)
    model = model_of(TriviumForCausalLM, letters)
    figure = plot_attention(model, letters, text)
    figure.savefig(io.BytesIO(), format="png")
    assert "".join(labels_of(figure)[0]) == text.replace("\n", "↵").replace(" ", "␣") + "</s>"


def test_what_cannot_be_drawn_is_refused(tokenizer: TriviumTokenizer) -> None:
    with pytest.raises(ValueError, match="target is 'Katze', but only an encoder-decoder writes one"):
        plot_attention(model_of(TriviumForMaskedLM, tokenizer), tokenizer, "cat", "Katze")
    with pytest.raises(ValueError, match="model is a TriviumModel, which writes nothing"):
        plot_attention(model_of(TriviumModel, tokenizer), tokenizer, "cat")
    bare = train_tokenizer(ENGLISH * 2, vocab_size=300, add_eos_token=False)
    with pytest.raises(ValueError, match="source is '', but must have tokens"):
        plot_attention(model_of(TriviumForCausalLM, bare), bare, "")
