"""Test that plots of a model's internals show the values that the model computes."""

import io
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
from trivium.inspection import plot_alignment, plot_attention, plot_heads, plot_logit_lens
from trivium.inspection.alignment import MIN_WEIGHT, words_of
from trivium.inspection.reading import label_of, token_labels
from trivium.tokenization import train_tokenizer

ENGLISH = ["two dogs ran across the road", "the cat sat on the mat", "birds fly south in winter"]
GERMAN = ["zwei Hunde liefen über die Straße", "die Katze saß auf der Matte", "Vögel fliegen im Winter nach Süden"]
WAYS = {
    TriviumForConditionalGeneration: {},
    TriviumForCausalLM: {"encoder_layers": 0},
    TriviumForMaskedLM: {"decoder_layers": 0},
    TriviumForSequenceClassification: {"decoder_layers": 0},
}


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(ENGLISH * 2 + GERMAN * 2, vocab_size=330)


def model_of(model_class: Any, tokenizer: TriviumTokenizer, **options: Any) -> PreTrainedModel:
    sizes = {"vocab_size": len(tokenizer), "attn_implementation": "sdpa", "dropout": 0.1, "attention_dropout": 0.1}
    return shake(model_class(tiny_config(**{**sizes, **WAYS.get(model_class, {}), **options})), std=0.5).train()


def heatmap_data(figure: Figure) -> torch.Tensor:
    return torch.tensor(figure.axes[0].images[0].get_array())


def labels_of(figure: Figure) -> tuple[list[str], list[str]]:
    """Return the row labels and the column labels of a plot."""
    axes = figure.axes[0]
    return [each.get_text() for each in axes.get_yticklabels()], [each.get_text() for each in axes.get_xticklabels()]


@pytest.mark.parametrize("model_class", WAYS)
def test_heatmap_shows_attention_of_model(model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer) -> None:
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
        # The decoder predicts each target token from the tokens before it.
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *target_ids[:-1]]])
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    layers = output.cross_attentions if model.config.is_encoder_decoder else output.attentions
    torch.testing.assert_close(heatmap_data(figure), layers[-1][0].mean(dim=0))
    torch.testing.assert_close(heatmap_data(figure).sum(dim=1), torch.ones(len(written)))
    assert labels_of(figure) == (written, source)
    assert "</s>" in source
    assert f"layer {len(layers)} of {len(layers)}" in figure.axes[0].get_title()


def test_encoder_decoder_plots_its_own_translation(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer)
    model.generation_config.max_new_tokens = 6
    inputs = tokenizer(ENGLISH[1], return_tensors="pt")
    own = tokenizer.decode(model.eval().generate(**inputs)[0], skip_special_tokens=True)
    figure, expected = plot_attention(model, tokenizer, ENGLISH[1]), plot_attention(model, tokenizer, ENGLISH[1], own)
    assert torch.equal(heatmap_data(figure), heatmap_data(expected))
    assert labels_of(figure) == labels_of(expected)


def test_two_vocabularies_use_their_own_tokenizer() -> None:
    tokenizer = train_tokenizer(ENGLISH * 2, target_texts=GERMAN * 2, vocab_size=330, shared=False)
    model = model_of(TriviumForConditionalGeneration, tokenizer.source, decoder_vocab_size=tokenizer.target_vocab_size)
    rows, columns = labels_of(plot_attention(model, tokenizer, ENGLISH[0], GERMAN[0]))
    assert "".join(columns) == ENGLISH[0].replace(" ", "") + "</s>"
    assert "".join(rows) == GERMAN[0].replace(" ", "") + "</s>"


@pytest.mark.parametrize("tokens", [1, pytest.param(8, marks=pytest.mark.slow), 40])
def test_labels_are_legible_at_any_length(tokens: int, tokenizer: TriviumTokenizer) -> None:
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
def test_any_text_can_be_plotted() -> None:
    text = "$x_1$ und \\frac{\n 漢字 مرحبا 🙂"
    letters = train_tokenizer([text], vocab_size=100, algorithm="char", normalization=None)
    model = model_of(TriviumForCausalLM, letters)
    figure = plot_attention(model, letters, text)
    figure.savefig(io.BytesIO(), format="png")
    assert "".join(labels_of(figure)[0]) == text.replace("\n", "↵").replace(" ", "␣") + "</s>"


# --- Kinds, layers and heads -----------------------------------------------------------------------------------------


def reference_attention(
    module: torch.nn.Module, queries: torch.Tensor, keys: torch.Tensor, is_causal: bool
) -> torch.Tensor:
    """Compute softmax(Q K^T / sqrt(d)) per head, (heads, rows, columns), from the inputs of the projections."""
    weights = []
    for head in range(module.config.num_attention_heads):
        width = slice(head * module.head_dim, (head + 1) * module.head_dim)
        q, k = queries @ module.q_proj.weight[width].T, keys @ module.k_proj.weight[width].T
        scores = q @ k.T / module.head_dim**0.5
        if is_causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        weights.append(scores.softmax(dim=-1))
    return torch.stack(weights)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_every_kind_layer_and_head_matches_equation(kind: str, tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer, encoder_layers=3)
    stack = model.model.encoder if kind == "encoder" else model.model.decoder
    attentions = [layer.cross_attn if kind == "cross" else layer.self_attn for layer in stack.layers]
    seen: dict[int, list[torch.Tensor]] = {}

    def record_inputs(module: torch.nn.Module, args: Any) -> None:
        # The encoder output is the third argument.
        seen[module.layer_idx] = [args[0][0], args[2 if kind == "cross" else 0][0]]

    for module in attentions:
        module.register_forward_pre_hook(record_inputs)
    target = {} if kind == "encoder" else {"target": GERMAN[0]}
    grid = plot_heads(model, tokenizer, ENGLISH[0], **target, kind=kind)
    expected = torch.stack(
        [reference_attention(each, *seen[i], is_causal=kind == "decoder") for i, each in enumerate(attentions)]
    )
    rows, columns = expected.shape[2:]
    # There is a gap after the last map, too.
    maps = torch.nn.functional.pad(heatmap_data(grid), (0, 1, 0, 1), value=torch.nan)
    maps = maps.view(3, rows + 1, 4, columns + 1).transpose(1, 2).float()  # Layer 1 is in the top row.
    torch.testing.assert_close(maps[:, :, :rows, :columns], expected)
    assert maps.isnan().sum() == maps.numel() - expected.numel()
    below, right = grid.axes[0].child_axes
    names = [[each.get_text() for each in labels] for labels in (below.get_xticklabels(), right.get_yticklabels())]
    assert names == [["head 1", "head 2", "head 3", "head 4"], ["layer 1", "layer 2", "layer 3"]]
    assert right.get_yticks()[0] == (rows - 1) / 2

    one = plot_attention(model, tokenizer, ENGLISH[0], **target, kind=kind, layer=1, head=2)
    torch.testing.assert_close(heatmap_data(one), expected[1, 2])
    mean = plot_attention(model, tokenizer, ENGLISH[0], **target, kind=kind, layer=-3)
    torch.testing.assert_close(heatmap_data(mean), expected[0].mean(dim=0))
    assert "layer 2 of 3, head 3 of 4" in one.axes[0].get_title()


def test_decoder_input_is_on_both_axes(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer)
    rows, columns = labels_of(plot_attention(model, tokenizer, ENGLISH[0], GERMAN[0], kind="decoder"))
    written, _ = labels_of(plot_attention(model, tokenizer, ENGLISH[0], GERMAN[0]))
    assert rows == columns == ["<s>", *written[:-1]]


def test_encoder_needs_no_head_and_no_target(tokenizer: TriviumTokenizer) -> None:
    whole = model_of(TriviumForConditionalGeneration, tokenizer)
    expected = heatmap_data(plot_attention(whole, tokenizer, ENGLISH[0], kind="encoder"))
    assert torch.equal(heatmap_data(plot_attention(whole.model, tokenizer, ENGLISH[0], kind="encoder")), expected)


def test_illegible_grid_labels_become_counts(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer)
    for words, is_written in ((5, True), (70, False)):
        figure = plot_heads(model, tokenizer, "cat " * words, kind="encoder")
        assert (labels_of(figure)[1][-1] == "</s>") == is_written
        assert max(figure.get_size_inches()) < 30


# --- Alignment -------------------------------------------------------------------------------------------------------


def test_word_alignment_averages_token_attention() -> None:
    """Compare with weights merged by hand: the tokenizer makes each letter a token, and words start with a space."""
    letters = train_tokenizer(ENGLISH + GERMAN, vocab_size=100, algorithm="char")
    model = model_of(TriviumForConditionalGeneration, letters)
    source, target = "two dogs", "zwei Hunde"
    weights = heatmap_data(plot_attention(model, letters, source, target, layer=0, head=1))
    rows, columns = [slice(0, 4), slice(4, 10), slice(10, 11)], [slice(0, 3), slice(3, 8), slice(8, 9)]
    expected = {
        (i, j): weights[row, column].sum(dim=1).mean().item()
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    }
    assert sum(expected.values()) == pytest.approx(3)
    figure = plot_alignment(model, letters, source, target, layer=0, head=1)
    left, right = figure.axes[:2]
    assert [each.get_text() for each in left.get_yticklabels()] == ["two", "dogs", "</s>"]
    assert [each.get_text() for each in right.get_yticklabels()] == ["zwei", "Hunde", "</s>"]
    lines = left.collections[0]
    found = {
        (round(segment[1][1]), round(segment[0][1])): weight
        for segment, weight in zip(lines.get_segments(), lines.get_array(), strict=True)
    }
    assert found == pytest.approx(
        {pair: weight for pair, weight in expected.items() if weight >= MIN_WEIGHT}, abs=1e-6
    )
    assert 0 < len(found) < 9, "or the test proves nothing"


def test_weak_attention_draws_no_lines(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer, num_attention_heads=2)
    for layer in model.model.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attn.q_proj.weight)  # makes attention uniform
    figure = plot_alignment(model, tokenizer, "cat " * 30, "Hund")
    assert len(figure.axes[0].collections[0].get_segments()) == 0
    figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_words_without_spaces_are_tokens_and_bytes_merge() -> None:
    tokenizer = train_tokenizer(["das das"], vocab_size=270)
    text = "das  漢字, 🙂! हिन्दी\nx"
    labels = ["das", "漢", "字", ",", "🙂", "!", "हिन्दी", "x", "</s>"]
    assert [word.label for word in words_of(tokenizer, text)] == labels
    tokens = [token for word in words_of(tokenizer, text) for token in word.tokens]
    assert tokens == list(range(len(tokenizer(text)["input_ids"])))


# --- Logit lens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [TriviumForConditionalGeneration, TriviumForCausalLM, TriviumForMaskedLM])
def test_logit_lens_applies_head_to_each_layer(
    model_class: type[PreTrainedModel], tokenizer: TriviumTokenizer
) -> None:
    """Apply the head to hidden states captured by hooks; the last column must equal the model's prediction."""
    model = model_of(model_class, tokenizer, norm_position="pre")
    is_decoder = model_class is not TriviumForMaskedLM
    stack = model.model.decoder if is_decoder else model.model.encoder
    head = model.lm_head if is_decoder else model.mlm_head
    states: list[torch.Tensor] = []
    stack.layers[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    for layer in stack.layers:
        layer.register_forward_hook(lambda module, args, output: states.append(output))
    last: list[torch.Tensor] = []
    head.register_forward_hook(lambda module, args, output: last.append(output))
    target = {"target": GERMAN[0]} if model.config.is_encoder_decoder else {}
    figure = plot_logit_lens(model, tokenizer, ENGLISH[0], **target)

    with torch.no_grad():
        expected = torch.stack([head(stack.norm(state))[0].softmax(dim=-1) for state in states], dim=1)
    axes = figure.axes[0]
    torch.testing.assert_close(heatmap_data(figure), expected.max(dim=-1).values)
    torch.testing.assert_close(heatmap_data(figure)[:, -1], last[0][0].softmax(dim=-1).max(dim=-1).values)
    expected_labels = token_labels(tokenizer, expected.argmax(dim=-1).T.flatten().tolist())
    assert [text.get_text() for text in axes.texts] == expected_labels
    right = [each.get_text() for each in axes.child_axes[0].get_yticklabels()]
    left = labels_of(figure)[0]
    if model_class is TriviumForConditionalGeneration:
        assert (left[0], right[-1]) == ("<s>", "</s>")
    if is_decoder:
        assert left[1:] == right[:-1]
    else:
        assert left == right


# --- Labels and errors -----------------------------------------------------------------------------------------------


def test_labels_show_invisible_characters() -> None:
    texts = [" a", "", " ", "\n\n", "a\nb", "\t", "\x00x", "\u200d", "x" * 50]
    assert [label_of(text) for text in texts] == [
        *("a", "␣", "␣", "↵", "a↵b", "␣", r"\x00x", "U+200D", "x" * 31 + "…")
    ]
    bytes_alone = train_tokenizer(["a"], vocab_size=270)
    assert token_labels(bytes_alone, bytes_alone("é")["input_ids"]) == [r"\xc3", r"\xa9", "</s>"]


def test_invalid_inputs_are_refused(tokenizer: TriviumTokenizer) -> None:
    with pytest.raises(ValueError, match=r"target.*'Katze'.*encoder-decoder takes one"):
        plot_attention(model_of(TriviumForMaskedLM, tokenizer), tokenizer, "cat", "Katze")
    with pytest.raises(ValueError, match=r"model.*TriviumModel.*head"):
        plot_attention(model_of(TriviumModel, tokenizer), tokenizer, "cat")
    bare = train_tokenizer(ENGLISH * 2, vocab_size=300, add_eos_token=False)
    with pytest.raises(ValueError, match=r"source.*''.*token"):
        plot_attention(model_of(TriviumForCausalLM, bare), bare, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "both"},
            "kind is 'both', but the attention of a TriviumForConditionalGeneration must be 'encoder' or",
        ),
        ({"layer": 3}, "layer is 3, but must be from 0 to 2, or from -3 to -1"),
        ({"head": -5}, "head is -5, but must be from 0 to 3"),
        ({"kind": "encoder", "target": "Katze"}, "target is 'Katze', but the encoder does not use it"),
    ],
)
def test_missing_parts_of_a_model_are_named(
    options: dict[str, Any], message: str, tokenizer: TriviumTokenizer
) -> None:
    model = model_of(TriviumForConditionalGeneration, tokenizer)
    with pytest.raises(ValueError, match=message):
        plot_attention(model, tokenizer, "cat", **{"target": None if "kind" in options else "Katze", **options})


def test_plots_of_other_models_are_refused(tokenizer: TriviumTokenizer) -> None:
    with pytest.raises(ValueError, match=r"kind.*'cross'.*attention.*TriviumForCausalLM.*'decoder'"):
        plot_heads(model_of(TriviumForCausalLM, tokenizer), tokenizer, "cat", kind="cross")
    with pytest.raises(ValueError, match=r"encoder-decoder.*words.*align"):
        plot_alignment(model_of(TriviumForCausalLM, tokenizer), tokenizer, "cat")
    with pytest.raises(ValueError, match=r"TriviumForSequenceClassification.*head.*predicts"):
        plot_logit_lens(model_of(TriviumForSequenceClassification, tokenizer), tokenizer, "cat")
