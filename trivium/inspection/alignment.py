"""Which words a translation comes from: cross-attention, from word to word."""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .drawing import TOKEN_INCHES, WEIGHTS
from .fonts import legible
from .reading import attend, choose, label_of, own_translation, token_labels

FAINTEST = 0.1  # the least weight that gets a line: all of them would be a grey cloud
THICKEST = 4  # points, of the weight 1
LINES = ListedColormap(colormaps[WEIGHTS](np.linspace(0.3, 1, 256)))  # without what is too pale for a line
# Thai, Lao, Burmese, Khmer, Japanese and Chinese have no spaces between words: there every token is taken for one.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
MARKS = ("Mn", "Mc", "Me", "Cf")  # accents, vowel signs, joiners


def plot_alignment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str | None = None,
    *,
    layer: int = -1,
    head: int | None = None,
) -> Figure:
    """Draw the words of a text and of its translation, and lines between them as strong as the cross-attention.

    A word looks as its tokens do in the mean, and is looked at as much as its tokens together, so that what a word of
    the translation looks at adds up to 1. Weights below 0.1 have no line. Attention is no more than a hint of where a
    word comes from: it often goes to the end of the sentence, or to the word before.

    Args:
        model: An encoder-decoder with its head; it stays as it is.
        tokenizer: Its tokenizer.
        source: The text to read.
        target: The translation to write; None: the model's own.
        layer: Of the decoder, counted from 0; by default the last.
        head: Counted from 0; None: the mean of all.

    Returns:
        The figure.

    Raises:
        ValueError: The model is none that translates; a text has no tokens; there is no such layer or head.
    """
    if not model.config.is_encoder_decoder:
        raise ValueError(f"model is a {type(model).__name__}, but only an encoder-decoder has words to align.")
    if target is None:
        target = own_translation(model, tokenizer, source)
    attention = attend(model, tokenizer, source, target, "cross")
    weights, title = choose(attention, layer, head)
    source_words = words_of(getattr(tokenizer, "source", tokenizer), source)
    target_words = words_of(getattr(tokenizer, "target", tokenizer), target)
    weights = between_words(weights, [word.tokens for word in target_words], [word.tokens for word in source_words])
    return _draw(weights, [word.label for word in target_words], [word.label for word in source_words], title)


@dataclass
class Word:
    """A word: as it is written, and which of the text's tokens it is made of."""

    label: str
    tokens: list[int]


def words_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Word]:
    """The words that the tokens of a text make up; punctuation and special tokens are words, too."""
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    labels = token_labels(tokenizer, encoding["input_ids"])
    words: list[Word] = []
    start = end = 0  # of the last word
    may_go_on = False
    places = zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
    for token, ((first, last), is_special) in enumerate(places):
        # A token of no characters is one of the bytes of a character, or the space before a word.
        goes_on = goes_on_at(text, first) if first < last else not text[:first][-1:].isspace()
        if may_go_on and not is_special and (goes_on or start == end):
            end = max(end, last)
            words[-1] = Word(label_of(text[start:end]), [*words[-1].tokens, token])
        else:
            start, end = first, last
            words.append(Word(labels[token] if first == last else label_of(text[first:last]), [token]))
        may_go_on = not is_special
    return words


def goes_on_at(text: str, place: int) -> bool:
    """Whether a character belongs to the word of the one before it."""
    before, here = text[max(place - 1, 0)], text[place]
    if unicodedata.category(here) in MARKS:
        return True
    is_word = before.isalnum() or unicodedata.category(before) in MARKS
    return is_word and here.isalnum() and not (UNSPACED.match(before) or UNSPACED.match(here))


def between_words(weights: torch.Tensor, rows: list[list[int]], columns: list[list[int]]) -> torch.Tensor:
    """(row tokens, column tokens) as (rows, columns): the mean of a row's tokens, the sum of a column's."""
    by_column = torch.stack([weights[:, tokens].sum(dim=1) for tokens in columns], dim=1)
    return torch.stack([by_column[tokens].mean(dim=0) for tokens in rows])


def _draw(weights: torch.Tensor, target: list[str], source: list[str], title: str) -> Figure:
    places = [_spread(len(words), max(weights.shape)) for words in (source, target)]
    pairs = [pair for pair in weights.nonzero().tolist() if weights[*pair] >= FAINTEST]
    pairs.sort(key=lambda pair: weights[*pair].item())  # the strongest above the others
    shown = np.array([weights[*pair].item() for pair in pairs])
    lines = LineCollection(
        [((0, places[0][column]), (1, places[1][row])) for row, column in pairs],
        array=shown,
        cmap=LINES,
        norm=Normalize(0, 1),
        linewidths=THICKEST * shown,
    )
    with legible([*source, *target]):
        figure = Figure(figsize=(5, 1.5 + max(weights.shape) * TOKEN_INCHES), layout="compressed")
        axes = figure.add_subplot(xlim=(0, 1))
        axes.add_collection(lines)
        for side, words, at in ((axes, source, places[0]), (axes.twinx(), target, places[1])):
            side.set_yticks(at, words)
            side.set_ylim(max(weights.shape) - 0.5, -0.5)
            side.tick_params(length=0)
            side.spines[:].set_visible(False)
        axes.set_xticks([0, 1], ["source", "translation"], style="italic")
        axes.xaxis.tick_top()
        axes.set_title(title, fontsize="medium")
        scale = figure.colorbar(lines, ax=axes, location="bottom", aspect=30, label="weight")
        scale.outline.set_visible(False)
    return figure


def _spread(count: int, longest: int) -> list[float]:
    """Places from 0 to `longest` - 1, in equal steps; of a single word the middle."""
    return np.linspace(0, longest - 1, count).tolist() if count > 1 else [(longest - 1) / 2]
