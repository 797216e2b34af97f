"""Which tokens a model finds alike: the nearest neighbours of words among its embeddings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from sklearn.decomposition import PCA
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .drawing import MARKERS, SERIES, TOKEN_INCHES
from .fonts import legible
from .reading import REPLACEMENT, token_labels

SIDES = ("source", "target")
# Where a name may stand: to the right (1) or left (-1) of its point, above (1) or below (-1), and so many points away.
SIDES_OF_POINT = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
PLACES = [(*side, far) for far in (6, 18) for side in SIDES_OF_POINT]


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
    above, below = figure.subfigures(2, 1, height_ratios=(rows * bars, map_height))
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
    _draw_map(below.subplots(), found, labels, embeddings)
    return figure


def _draw_map(axes: Axes, found: list[Neighbours], labels: list[list[str]], embeddings: torch.Tensor) -> None:
    vectors = torch.cat([torch.cat((each.vector[None], embeddings[each.tokens])) for each in found])
    plane = PCA(n_components=2).fit(vectors.numpy())
    places = plane.transform(vectors.numpy()).reshape(len(found), -1, 2)
    names: dict[tuple[float, float], str] = {}  # of tokens that are neighbours of several words, once
    for number, (each, its_labels, points) in enumerate(zip(found, labels, places, strict=True)):
        style = {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)], "linestyle": ""}
        axes.plot(*points[1:].T, **style, markersize=4)
        axes.plot(*points[:1].T, **style, markersize=9)
        names |= dict(zip(map(tuple, points.tolist()), [each.word, *its_labels], strict=True))
    kept = plane.explained_variance_ratio_.sum()
    axes.set_title(f"on a plane, which keeps {kept:.0%} of what they differ in", fontsize="medium")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")
    axes.margins(0.1)
    _write_apart(axes, names)


def _write_apart(axes: Axes, names: dict[tuple[float, float], str]) -> None:
    """Write each name beside its point, on that side where it covers the least of the points and of other names."""
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()  # only now is it known where the points are
    dots = figure.dpi / 72
    points = axes.transData.transform(list(names))
    taken = [_box(x, y, 8 * dots, 8 * dots) for x, y in points]
    for (x, y), point, name in zip(points, names.keys(), names.values(), strict=True):
        text = axes.annotate(
            name, point, (0, 0), textcoords="offset points", fontsize="small", ha="center", va="center"
        )
        size = text.get_window_extent()
        boxes = {}
        for right, up, far in PLACES:
            offset = right * (far + size.width / 2 / dots), up * (far + size.height / 2 / dots)
            boxes[offset] = _box(x + offset[0] * dots, y + offset[1] * dots, size.width, size.height)
        best = min(boxes, key=lambda offset: sum(_area(Bbox.intersection(boxes[offset], other)) for other in taken))
        text.set_position(best)
        taken.append(boxes[best])


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    """The one of this size around a point."""
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _area(box: Bbox | None) -> float:
    return box.width * box.height if box else 0.0
