"""Load sentence pairs for several translation directions, tag the target language, and mix by temperature."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from trivium.data.arguments import DataArguments
from trivium.data.columns import PAIR
from trivium.modeling.pipeline_translation import language_tag

DIRECTION = re.compile(r"([A-Za-z][A-Za-z0-9_]*)-([A-Za-z][A-Za-z0-9_]*)")
PLACEHOLDER = "{direction}"
PATHS = ("config_name", "train", "validation", "test")  # fields in which `{direction}` is replaced

Loaded = tuple[Any, dict[str, Counter[str]]]


def check_directions(args: DataArguments, columns: Sequence[str]) -> None:
    """Check the fields that configure several directions.

    Raises:
        ValueError: The message names the field, its value and what is allowed.
    """
    if args.directions is None:
        for name, default in (("temperature", 1.0), ("mixing_seed", 0)):
            if getattr(args, name) != default:
                raise ValueError(
                    f"data.{name} is {getattr(args, name)}, but is only for several directions. Set data.directions, "
                    f"or leave it out."
                )
        return
    if tuple(columns) != PAIR:
        raise ValueError(f"data.directions is {args.directions}, but is only for sentence pairs, not for {columns}.")
    if args.streaming:
        raise ValueError(
            f"data.directions is {args.directions} and data.streaming is True, but the rows of several directions "
            "are mixed on the disk. Set data.streaming=false."
        )
    for direction in args.directions:
        match = DIRECTION.fullmatch(direction)
        if match is None or match[1] == match[2]:
            raise ValueError(
                f"data.directions has {direction!r}, but a direction must be two different languages with a hyphen, "
                "such as en-de; a language has only letters, digits and underscores."
            )
    if not args.directions or len(set(args.directions)) < len(args.directions):
        raise ValueError(f"data.directions is {args.directions}, but must be different directions, at least one.")
    if not args.temperature >= 1:
        raise ValueError(f"data.temperature is {args.temperature}, but must be at least 1.")


def split_directions(args: DataArguments) -> list[DataArguments]:
    """Return the arguments of each direction, or only `args` if there are no directions."""
    if args.directions is None:
        return [args]
    parts = []
    for direction in args.directions:
        source, target = direction.split("-")
        paths = {name: path.replace(PLACEHOLDER, direction) for name in PATHS if (path := getattr(args, name))}
        options: dict[str, Any] = {"directions": None, "temperature": 1.0, "mixing_seed": 0}
        parts.append(replace(args, source=source, target=target, **paths, **options))
    return parts


def tags_of(args: DataArguments) -> list[str]:
    """Return the tags of the target languages, without duplicates, in the order of the directions."""
    if args.directions is None:
        return []
    return list(dict.fromkeys(language_tag(part.target) for part in split_directions(args)))


def missing_tags(tags: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tags that are not tokens of a tokenizer, sorted."""
    return sorted(set(tags) - set(tokenizer.get_vocab()))


def check_trained_directions(args: DataArguments, tokenizer: PreTrainedTokenizerBase, model: Path) -> None:
    """Raise a ValueError if the tokenizer of a saved model lacks the tag of a direction."""
    if missing := missing_tags(tags_of(args), tokenizer):
        raise ValueError(
            f"data.directions is {args.directions}, but the tokenizer of {model} does not have {', '.join(missing)}. "
            "Choose directions that the model was trained on."
        )


def untagged_texts(texts: Iterable[str], tags: Sequence[str]) -> Iterator[str]:
    """Yield texts without the tags at their start, on whose letters a tokenizer should not be trained."""
    for text in texts:
        while tag := next((tag for tag in tags if text.startswith(tag)), ""):
            text = text.removeprefix(tag)
        yield text


def load_directions(
    args: DataArguments, columns: Sequence[str], load: Callable[[DataArguments, Sequence[str]], Loaded]
) -> tuple[DatasetDict, dict[str, Counter[str]]]:
    """Load and tag every direction, mix the training rows, and concatenate the validation and test splits.

    Limits such as `max_train_samples` hold for each direction.

    Returns:
        The splits, and the number of dropped rows by reason, summed over all directions.
    """
    tagged: dict[str, list[Dataset]] = {}
    dropped: dict[str, Counter[str]] = {}
    for part in split_directions(args):
        splits, counts = load(part, columns)
        for split, rows in splits.items():
            tag = language_tag(part.target)
            tagged.setdefault(split, []).append(rows.map(_add_tag, fn_kwargs={"tag": tag}, desc=f"Adding {tag}"))
            dropped.setdefault(split, Counter()).update(counts[split])
    mixed = {
        split: mix(parts, args.temperature, args.mixing_seed) if split == "train" else concatenate_datasets(parts)
        for split, parts in tagged.items()
    }
    return DatasetDict(mixed), dropped


def _add_tag(row: Mapping[str, str], tag: str) -> dict[str, str]:
    return {"source": tag + row["source"]}


def mix(parts: Sequence[Dataset], temperature: float, seed: int) -> Dataset:
    """Mix datasets: repeat the rows of the smaller ones, and shuffle.

    The largest dataset, with n rows, is used once. At temperature T, a dataset with m rows contributes n^(1 - 1/T)
    m^(1/T) rows: m rows for T = 1, approaching n rows as T grows. It is repeated as a whole as often as possible, and
    the remaining rows are drawn without replacement. Sampling probabilities are thus proportional to m^(1/T), as in
    Arivazhagan et al. 2019, section 4.2, and no row is left out.

    Args:
        parts: The datasets, which must have the same columns.
        temperature: The temperature, at least 1.
        seed: Seed for drawing the rows and shuffling them. The same seed yields the same rows in the same order.
    """
    largest = max(len(rows) for rows in parts)
    repeated = []
    for rows in parts:
        count = round(largest * (len(rows) / largest) ** (1 / temperature))
        repeated += [rows] * (count // len(rows))
        if rest := count % len(rows):
            repeated.append(rows.shuffle(seed=seed).select(range(rest)))
    return concatenate_datasets(repeated).shuffle(seed=seed)
