"""Which tokens a model finds alike: the nearest neighbours of words among its embeddings."""

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
Place = tuple[float, float]
# Candidate positions of a label: direction from its point and distance in points, the nearest first.
DIRECTIONS = [(math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)) for turn in (0, 8, 4, 12, *range(16))]
DISTANCES = (6, 14, 24, 36, 50, 66)


@dataclass
class Neighbours:
    """A word, and the tokens whose embeddings are most like its own.

    Attributes:
        word: As it was given.
        vector: (d_model,), the mean of its tokens' embeddings.
        tokens: The ids of the nearest, the nearest first.
        cosines: How like each is, from -1 to 1.
    """

    word: str
    vector: torch.Tensor
    tokens: list[int]
    cosines: list[float]


def plot_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    *,
    count: int = 8,
    side: str = "source",
) -> Figure:
    """Draw the tokens whose embeddings are nearest to those of words, and all of them on a map.

    Near is a large cosine. A word is taken as in the middle of a sentence; of several tokens it is their mean. A `␣`
    is the space before a word, which many tokenizers keep inside its first token. The map is the plane along which
    these embeddings differ most (their first two principal components), and keeps only a part of the differences.

    Args:
        model: A Trivium model; it stays as it is.
        tokenizer: Its tokenizer.
        words: One or more.
        count: So many neighbours of each; special tokens, the word's own, and what is no
            readable text are left out.
        side: Of an encoder-decoder, "source" or "target", whose embeddings; they differ unless they are tied.

    Returns:
        The figure: bars for each word, and the map.

    Raises:
        ValueError: There are no words, or one has no tokens; `count` is below 1 or more than there are; or `side` is
            neither of the two.
    """
    if isinstance(words, str) or not words:
        raise ValueError(f"words is {words!r}, but must be a list with at least one word.")
    if side not in SIDES:
        raise ValueError(f"side is {side!r}, but must be 'source' or 'target'.")
    side_tokenizer = getattr(tokenizer, side, tokenizer)
    stack = model.get_decoder() if side == "target" and model.config.is_encoder_decoder else model
    embeddings = stack.get_input_embeddings().weight.detach().float().cpu()[: len(side_tokenizer)]
    found = [nearest(word, embeddings, side_tokenizer, count) for word in words]
    labels = [token_labels(side_tokenizer, each.tokens, mark_space=True) for each in found]
    with legible([*words, *(label for some in labels for label in some)]):
        return _draw(found, labels, embeddings)


def nearest(word: str, embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> Neighbours:
    """The neighbours of one word among (vocabulary, d_model) embeddings.

    Raises:
        ValueError: The word has no tokens; or there are not as many others as `count`, or that is below 1.
    """
    # In the middle of a sentence, unless that takes more tokens than to begin one with it.
    spellings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
    own = min(spellings, key=len)
    if not word.strip() or not own:
        raise ValueError(f"words has {word!r}, which has no tokens.")
    left_out = {*own, *tokenizer.all_special_ids}
    vector = embeddings[own].mean(dim=0)
    cosines = cosine_similarity(embeddings, vector[None], dim=1)
    best = (token for token in cosines.argsort(descending=True).tolist() if token not in left_out)
    tokens = list(islice((token for token in best if _is_text(tokenizer.decode([token]))), count))
    if len(tokens) < max(count, 1):
        raise ValueError(f"count is {count}, but must be from 1 to {len(tokens)}, as many as there are others.")
    return Neighbours(word, vector, tokens, cosines[tokens].tolist())


def _is_text(text: str) -> bool:
    """Whether it can be read: not so a single byte of several that make a character, or a control character."""
    return REPLACEMENT not in text and text.isprintable()


def _draw(found: list[Neighbours], labels: list[list[str]], embeddings: torch.Tensor) -> Figure:
    count = len(labels[0])
    columns = min(len(found), 4)
    rows = math.ceil(len(found) / columns)
    bars, map_height = 0.6 + count * TOKEN_INCHES, 5.0
    figure = Figure(figsize=(max(7, 2.2 * columns), rows * bars + map_height), layout="constrained")
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(rows * bars, map_height))
    grid = above.subplots(rows, columns, squeeze=False, sharex=True).flat
    for number, axes in enumerate(grid):
        if number >= len(found):
            axes.set_visible(False)
            continue
        axes.barh(range(count), found[number].cosines, color=SERIES[number % len(SERIES)], height=0.7)
        axes.set_yticks(range(count), labels[number])
        axes.invert_yaxis()
        axes.tick_params("y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(found[number].word, fontsize="medium")
    above.supxlabel("cosine", fontsize="medium")
    axes = below.subplots()
    _write_apart(figure, axes, _draw_map(axes, found, labels, embeddings))
    return figure


def _draw_map(
    axes: Axes, found: list[Neighbours], labels: list[list[str]], embeddings: torch.Tensor
) -> dict[Place, str]:
    """Draw the words and their neighbours as points, and say what is to be written at which of them."""
    vectors = torch.cat([torch.cat((each.vector[None], embeddings[each.tokens])) for each in found])
    plane = PCA(n_components=2).fit(vectors.numpy())
    places = plane.transform(vectors.numpy()).round(5).reshape(len(found), -1, 2)
    names: dict[Place, str] = {}  # of tokens that are neighbours of several words, once
    for number, (its_labels, points) in enumerate(zip(labels, places, strict=True)):
        style: dict[str, Any] = {
            "color": SERIES[number % len(SERIES)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "",
        }
        axes.plot(*points[1:].T, **style, markersize=4)
        axes.plot(*points[:1].T, **style, markersize=9)
        names |= dict(zip(map(tuple, points[1:].tolist()), its_labels, strict=True))
    names |= {tuple(points[0].tolist()): each.word for each, points in zip(found, places, strict=True)}
    kept = plane.explained_variance_ratio_.sum()
    title = f"on the plane of their first two principal components: {kept:.0%} of the variance"
    axes.set_title(title, fontsize="medium")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")
    axes.margins(0.1)
    return names


def _write_apart(figure: Figure, axes: Axes, names: dict[Place, str]) -> None:
    """Write each name near its point, at the nearest position that overlaps no point and no other name.

    A name that has to move away is connected with its point by a thin line.
    """
    figure.draw_without_rendering()  # the positions of the points in pixels are known only after layout
    dots = figure.dpi / 72
    points = axes.transData.transform(list(names))
    taken = [_box(x, y, 8 * dots, 8 * dots) for x, y in points]
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
                cost = sum(_area(Bbox.intersection(box, other)) for other in taken) + box.width * box.height - inside
                if cost < best_cost - 1:
                    best, best_cost = (*offset, distance), cost
        text.set_position(best[:2])
        taken.append(_box(x + best[0] * dots, y + best[1] * dots, size.width + 2 * dots, size.height))
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
