"""Figures of a model card: attention and learning curves."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, TrainerState

from trivium import modeling
from trivium.configuration import TriviumConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_attention(folder: Path, config: TriviumConfig, task: str, text: str) -> bytes | None:
    """Return the attention of a saved model for a text as a PNG, or None if the model does not support it.

    Args:
        folder: Folder of the model.
        config: Its configuration.
        task: Its task on the Hub.
        text: The text.
    """
    model_class = getattr(modeling, config.architectures[0])
    cannot_generate = config.is_encoder_decoder and task != "translation"
    if cannot_generate or not (folder / "tokenizer.json").is_file():
        return None
    from trivium.inspection import plot_attention  # deferred: matplotlib takes time to import

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return _as_png(plot_attention(model_class.from_pretrained(folder), tokenizer, text))


def draw_curves(folder: Path, state: TrainerState | None) -> bytes | None:
    """Return the learning curves of a run as a PNG, or None if fewer than two losses of a kind were logged."""
    log = state.log_history if state else []
    if max(sum(name in entry for entry in log) for name in ("loss", "eval_loss")) < 2:
        return None
    from trivium.inspection import plot_learning_curves  # deferred: matplotlib takes time to import

    return _as_png(plot_learning_curves(folder))


def _as_png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # glyphs that the font lacks are drawn as boxes
        figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    return content.getvalue()
