"""Test plots of attention masks."""

from typing import Any

import pytest
import torch
from figures import heatmap_of
from tiny import mask_of, random_ids, tiny_config, tiny_model

from trivium import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumModel,
    preset_config,
)
from trivium.inspection import (
    plot_masks,
)

# --- Masks -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def visibility_by_gradient(model: Any, inputs: dict[str, torch.Tensor], read: str, output: str) -> torch.Tensor:
    """Return a mask (batch, rows, columns): True if changing `read` at a column changes `output` at a row."""
    embeddings = model.get_input_embeddings()
    ids = {name: value for name, value in inputs.items() if name.endswith("input_ids")}
    embedded = {name.replace("input_ids", "inputs_embeds"): embeddings(value) for name, value in ids.items()}
    rest = {name: value for name, value in inputs.items() if name not in ids}
    before = model(**rest, **embedded)[output]
    seen = torch.zeros(*before.shape[:2], embedded[read].shape[1], dtype=torch.bool)
    for column in range(seen.shape[2]):
        changed = embedded[read].clone()
        changed[:, column] += 1
        seen[:, :, column] = (model(**rest, **{**embedded, read: changed})[output] != before).any(dim=-1)
    return seen


@pytest.mark.parametrize("side", [pytest.param("right", marks=pytest.mark.slow), "left"])
def test_masks_match_influence_between_positions(side: str) -> None:
    """Compare plotted masks with the measured influence, in one layer: more layers mix positions indirectly."""
    sources, targets = mask_of([6, 4, 1], side), mask_of([5, 3, 2], side)
    ways: list[tuple[Any, dict[str, Any], list[tuple[str, str]]]] = [
        (TriviumEncoderModel, {"decoder_layers": 0, "encoder_layers": 1}, [("inputs_embeds", "last_hidden_state")]),
        (TriviumDecoderModel, {"encoder_layers": 0, "decoder_layers": 1}, [("inputs_embeds", "last_hidden_state")]),
        (
            TriviumModel,
            {"encoder_layers": 1, "decoder_layers": 1},
            [
                ("inputs_embeds", "encoder_last_hidden_state"),
                ("decoder_inputs_embeds", "last_hidden_state"),
                ("inputs_embeds", "last_hidden_state"),
            ],
        ),
    ]
    for model_class, layers, kinds in ways:
        model = tiny_model(model_class, **layers)
        is_whole = model_class is TriviumModel
        inputs = {"input_ids": random_ids(3, 6), "attention_mask": sources}
        if is_whole:
            inputs |= {"decoder_input_ids": random_ids(3, 5), "decoder_attention_mask": targets}
        lengths = {"target_lengths": (5, 3, 2)} if is_whole else {}
        for model_or_config in (model, model.config):
            figure = plot_masks(model_or_config, (6, 4, 1), **lengths, padding_side=side)
            for column, (read, output) in enumerate(kinds):
                seen = visibility_by_gradient(model, inputs, read, output)
                rows = targets if is_whole and output == "last_hidden_state" else sources
                for text in range(3):
                    # Ignore the rows of padding queries, whose outputs are not used.
                    real = rows[text].bool()
                    looks = heatmap_of(figure, text * len(kinds) + column) == 2
                    is_own = torch.eye(*looks.shape, dtype=torch.bool) & (read != "inputs_embeds" or not column)
                    assert torch.equal((looks | is_own)[real], (seen[text] | is_own)[real])
                    assert looks[real].any(dim=1).all()


def test_every_masked_position_has_a_reason() -> None:
    padding, later, seen = range(3)
    figure = plot_masks(preset_config("gpt2"), (3, 2))
    assert heatmap_of(figure, 0).tolist() == [[seen, later, later], [seen, seen, later], [seen, seen, seen]]
    assert heatmap_of(figure, 1)[:2].tolist() == [[seen, later, padding], [seen, seen, padding]]
    labels = [each.get_text() for each in figure.axes[1].get_xticklabels()]
    assert labels == ["0", "1", "pad"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": ()}, "lengths is \\[\\], but must have a number of at least 1 for each text"),
        ({"lengths": (3, 0)}, "lengths is \\[3, 0\\]"),
        ({"target_lengths": (3,)}, "target_lengths is \\[3\\]"),
        ({"padding_side": "top"}, "padding_side is 'top', but must be 'right' or 'left'"),
    ],
)
def test_invalid_lengths_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_masks(tiny_config(), **arguments)
    with pytest.raises(ValueError, match=r"encoder-decoder.*targets"):
        plot_masks(preset_config("gpt2"), target_lengths=(1, 1))
