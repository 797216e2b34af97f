"""Plot the nearest neighbors of words among the token embeddings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from sklearn.decomposition import PCA
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .drawing import MARKERS, SERIES, TOKEN_INCHES
from .fonts import legible
from .reading import REPLACEMENT, token_labels

SIDES = ("source", "target")
Point = tuple[float, float]
# Candidate positions of a label: direction from its point and distance in points, nearest first.
DIRECTIONS = [(math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)) for turn in (0, 8, 4, 12, *range(16))]
DISTANCES = (6, 14, 24, 36, 50, 66)


@dataclass
class Neighbors:
    """A word and its nearest neighbors among the token embeddings.

    Attributes:
        word: The word.
        vector: Mean of the embeddings of its tokens, (d_model,).
        tokens: Ids of the neighbors, nearest first.
        cosines: Cosine similarity of each neighbor, from -1 to 1.
    """

    word: str
    vector: torch.Tensor
    tokens: list[int]
    cosines: list[float]


def plot_neighbors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    *,
    count: int = 8,
    side: str = "source",
) -> Figure:
    """Draw the nearest neighbors of words among the token embeddings, as bars and on a map.

    Neighbors are ranked by cosine similarity. A word is tokenized as in the middle of a sentence; several tokens are
    averaged. `␣` marks the space before a word, which many tokenizers include in its first token. The map is a
    projection on the first two principal components of these embeddings, and keeps only part of the variance.

    Args:
        model: A Trivium model; it is not modified.
        tokenizer: Its tokenizer.
        words: One or more words.
        count: Number of neighbors per word; special tokens, the tokens of the word and unreadable tokens are excluded.
        side: "source" or "target" embeddings of an encoder-decoder; they are equal if tied.

    Returns:
        The figure: bars for each word, and the map.

    Raises:
        ValueError: `words` is empty, a word has no tokens, `count` is out of range, or `side` is invalid.
    """
    if isinstance(words, str) or not words:
        raise ValueError(f"words is {words!r}, but must be a list with at least one word.")
    if side not in SIDES:
        raise ValueError(f"side is {side!r}, but must be 'source' or 'target'.")
    side_tokenizer = getattr(tokenizer, side, tokenizer)
    stack = model.get_decoder() if side == "target" and model.config.is_encoder_decoder else model
    embeddings = stack.get_input_embeddings().weight.detach().float().cpu()[: len(side_tokenizer)]
    results = [nearest(word, embeddings, side_tokenizer, count) for word in words]
    labels = [token_labels(side_tokenizer, result.tokens, mark_space=True) for result in results]
    with legible([*words, *(label for word_labels in labels for label in word_labels)]):
        return _draw(results, labels, embeddings)


def nearest(word: str, embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> Neighbors:
    """Find the nearest neighbors of a word among embeddings of shape (vocabulary, d_model).

    Raises:
        ValueError: The word has no tokens, or `count` is below 1 or above the number of candidates.
    """
    # Prefer the spelling inside a sentence, with a space, unless it takes more tokens.
    spellings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
    own = min(spellings, key=len)
    if not word.strip() or not own:
        raise ValueError(f"words has {word!r}, which has no tokens.")
    excluded = {*own, *tokenizer.all_special_ids}
    vector = embeddings[own].mean(dim=0)
    cosines = cosine_similarity(embeddings, vector[None], dim=1)
    best = (token for token in cosines.argsort(descending=True).tolist() if token not in excluded)
    tokens = list(islice((token for token in best if _is_text(tokenizer.decode([token]))), count))
    if len(tokens) < max(count, 1):
        raise ValueError(
            f"count is {count}, but must be from 1 to {len(tokens)}, the number of other readable tokens."
        )
    return Neighbors(word, vector, tokens, cosines[tokens].tolist())


def _is_text(text: str) -> bool:
    """Return True for readable text: no partial bytes of a character, no control characters."""
    return REPLACEMENT not in text and text.isprintable()


def _draw(results: list[Neighbors], labels: list[list[str]], embeddings: torch.Tensor) -> Figure:
    count = len(labels[0])
    columns = min(len(results), 4)
    rows = math.ceil(len(results) / columns)
    bars, map_height = 0.6 + count * TOKEN_INCHES, 5.0
    figure = Figure(figsize=(max(7, 2.2 * columns), rows * bars + map_height), layout="constrained")
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(rows * bars, map_height))
    grid = above.subplots(rows, columns, squeeze=False, sharex=True).flat
    for number, axes in enumerate(grid):
        if number >= len(results):
            axes.set_visible(False)
            continue
        axes.barh(range(count), results[number].cosines, color=SERIES[number % len(SERIES)], height=0.7)
        axes.set_yticks(range(count), labels[number])
        axes.invert_yaxis()
        axes.tick_params("y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(results[number].word, fontsize="medium")
    above.supxlabel("cosine", fontsize="medium")
    axes = below.subplots()
    _place_labels(figure, axes, _draw_projection(axes, results, labels, embeddings))
    return figure


def _draw_projection(
    axes: Axes, results: list[Neighbors], labels: list[list[str]], embeddings: torch.Tensor
) -> dict[Point, str]:
    """Draw the words and their neighbors as points; return the label of each point."""
    vectors = torch.cat([torch.cat((result.vector[None], embeddings[result.tokens])) for result in results])
    plane = PCA(n_components=2).fit(vectors.numpy())
    positions = plane.transform(vectors.numpy()).round(5).reshape(len(results), -1, 2)
    names: dict[Point, str] = {}  # neighbors of several words are labeled once
    for number, (point_labels, points) in enumerate(zip(labels, positions, strict=True)):
        style: dict[str, Any] = {
            "color": SERIES[number % len(SERIES)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "",
        }
        axes.plot(*points[1:].T, **style, markersize=4)
        axes.plot(*points[:1].T, **style, markersize=9)
        names |= dict(zip(map(tuple, points[1:].tolist()), point_labels, strict=True))
    names |= {tuple(points[0].tolist()): result.word for result, points in zip(results, positions, strict=True)}
    explained = plane.explained_variance_ratio_.sum()
    title = f"first two principal components: {explained:.0%} of the variance"
    axes.set_title(title, fontsize="medium")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")
    axes.margins(0.1)
    return names


def _place_labels(figure: Figure, axes: Axes, names: dict[Point, str]) -> None:
    """Place each label near its point, at the nearest position that overlaps no point and no other label.

    A label that is not adjacent to its point is connected to it by a thin line.
    """
    figure.draw_without_rendering()  # pixel positions are known only after layout
    dots = figure.dpi / 72
    points = axes.transData.transform(list(names))
    occupied = [_box(x, y, 8 * dots, 8 * dots) for x, y in points]
    frame = axes.get_window_extent()
    for (x, y), point, name in zip(points, names.keys(), names.values(), strict=True):
        text = axes.annotate(
            name, point, (0, 0), textcoords="offset points", fontsize="small", ha="center", va="center"
        )
        size = text.get_window_extent()
        best, best_cost = (0.0, 0.0, 0), math.inf
        for distance in DISTANCES:
            for right, up in DIRECTIONS:
                offset = right * (distance + size.width / 2 / dots), up * (distance + size.height / 2 / dots)
                box = _box(x + offset[0] * dots, y + offset[1] * dots, size.width + 2 * dots, size.height)
                inside = _area(Bbox.intersection(box, frame))
                cost = (
                    sum(_area(Bbox.intersection(box, other)) for other in occupied) + box.width * box.height - inside
                )
                if cost < best_cost - 1:
                    best, best_cost = (*offset, distance), cost
        text.set_position(best[:2])
        occupied.append(_box(x + best[0] * dots, y + best[1] * dots, size.width + 2 * dots, size.height))
        if best[2] > DISTANCES[0]:
            end = axes.transData.inverted().transform((x + best[0] * dots, y + best[1] * dots))
            axes.add_line(Line2D(*zip(point, end, strict=True), color="0.8", linewidth=0.7, zorder=1))
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    """Return the box of this size centered at a point."""
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _area(box: Bbox | None) -> float:
    """Return the area of a box; 0 for None."""
    return box.width * box.height if box else 0.0
