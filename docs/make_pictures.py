"""Generate the pictures of `walk.md` from the model trained by `make demo`.

    python docs/make_pictures.py runs/numbers

The pictures are written to `docs/pictures/walk-*.png`.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import trivium  # noqa: F401, registers the model
from trivium.inspection import (
    plot_attention,
    plot_heads,
    plot_logit_lens,
    plot_masks,
    plot_position_products,
    plot_positions,
    save_figure,
)

SOURCE = "three hundred and forty-two"
PICTURES = Path(__file__).parent / "pictures"


def figures(folder: str) -> dict[str, Figure]:
    """Return the figures for walk.md, keyed by name."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return {
        "positions": plot_positions(model, length=64),
        "position-products": plot_position_products(model, length=64),
        "self-attention": plot_heads(model, tokenizer, SOURCE, kind="encoder"),
        "masks": plot_masks(model, lengths=(7, 5), target_lengths=(4, 3)),
        "cross-attention": plot_attention(model, tokenizer, SOURCE),
        "logit-lens": plot_logit_lens(model, tokenizer, SOURCE),
    }


def main() -> None:
    """Draw and save all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of the trained model")
    for name, figure in figures(parser.parse_args().folder).items():
        save_figure(figure, PICTURES / f"walk-{name}.png")


if __name__ == "__main__":
    main()
