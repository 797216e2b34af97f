"""Folders: a saved model of transformers becomes a Trivium model, and a Trivium model one of theirs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from trivium import modeling
from trivium.interop.checkpoint import Checkpoint, write_weights
from trivium.interop.exchange import Exchange
from trivium.interop.families import FAMILIES
from trivium.interop.mapping import Family
from trivium.storage.atomic import check_free, whole_folder
from trivium.tokenization import TriviumTokenizer

MAX_SHARD_SIZE = "5GB"
HUB_FILES = ["model*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja"]  # nothing pickled, no code
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.spm")
TARGET_TOKENIZER = "target_tokenizer"  # the folder of the second of two


class Converted(NamedTuple):
    """What `convert` made.

    Attributes:
        family: The name of the family that the model came from, or became one of.
        model: The model without its weights, on the meta device.
        notes: What is not as it was, a sentence each.
    """

    family: str
    model: PreTrainedModel
    notes: list[str]


def convert(
    source: str | Path,
    output: str | Path,
    to: str | None = None,
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    show_progress: bool = False,
) -> Converted:
    """Make a Trivium model of a saved model of transformers, or the other way round, with tokenizer and all.

    Weights are read and written tensor by tensor: they never are in memory all at once, but file by file.

    Args:
        source: A saved model, which stays as it is, or the name of one on the Hub.
        output: A new or an empty folder.
        to: The family that a Trivium model shall become one of; None: the only one that fits. Any other model
            becomes a Trivium model.
        max_shard_size: Larger weights are written in several files; bytes, or a text such as "5GB".
        show_progress: Whether to show a progress bar.

    Returns:
        What was made.

    Raises:
        FileNotFoundError: The model, or a file of it, is not there.
        ValueError: No model on the other side computes the same, the files are not what they seem, or `output` is
            there already; the message says what is in the way. Nothing is written then.
    """
    output = Path(output)
    check_free(output)
    folder = _local(source)
    said = _said(folder)
    outward = said.get("model_type") == "trivium"
    if not outward and to not in (None, "trivium"):
        raise ValueError(f"to is {to!r}, but {source} is no Trivium model: make one of it first, without `to`.")
    with Checkpoint(folder) as weights:
        try:
            family, before, after, notes = _outward(folder, to) if outward else _inward(folder, said, weights)
        except StrictDataclassError as error:
            raise ValueError(f"{folder / 'config.json'} cannot be: {error.__cause__ or error}") from error
        native, ours = (after, before) if outward else (before, after)
        exchange = Exchange(family, native, ours)
        steps = (exchange.outward if outward else exchange.inward)(weights, weights.shapes)
        fate = "new when it is loaded: a Trivium model has none" if outward else "left behind: Trivium has none"
        unmatched = exchange.without_ours if outward else exchange.dropped(weights)
        notes += [f"{name} is {fate}" for name in sorted({name.rpartition(".")[0] for name in unmatched})]
        after.to(next(iter(steps.values()))().dtype)
        with whole_folder(output) as partial:
            with _no_progress_bar():
                after.save_pretrained(partial, state_dict={})  # the weights are not there yet
            write_weights(partial, steps, after, max_shard_size, show_progress)
            notes += _convert_tokenizer(folder, partial, outward)
    return Converted(family.model_type, after, notes)


def _local(source: str | Path) -> Path:
    """The folder of a model, downloaded if it has to be."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, FileNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{source} is no folder, and no model on the Hub that can be had: {reason}") from error


def _said(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a saved model: it has no config.json.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} is no configuration, but a {type(said).__name__}.")
    if "quantization_config" in said:
        raise ValueError(f"{path} has a quantization_config: convert the model that was quantized.")
    return said


def _inward(
    folder: Path, said: dict[str, Any], weights: Checkpoint
) -> tuple[Family, PreTrainedModel, PreTrainedModel, list[str]]:
    family = FAMILIES.get(said.get("model_type", ""))
    if family is None:
        raise ValueError(
            f"{folder} holds a model of model_type {said.get('model_type')!r}, but must be one of trivium, "
            f"{', '.join(FAMILIES)}."
        )
    native_class = (said.get("architectures") or [None])[0]
    if native_class not in family.classes:
        raise ValueError(
            f"{folder} holds a {native_class}, but of the family {family.model_type} Trivium knows "
            f"{', '.join(family.classes)}."
        )
    native_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    found = {
        name: any(bool(weights[given].any()) for given in weights if given.endswith(tensor))
        for name, tensor in family.found.items()
    }
    our_class = family.classes[native_class]
    ours = _empty(getattr(modeling, our_class), family.to_ours(native_config, our_class, **found))
    native = _empty(getattr(transformers, native_class), native_config)
    _adopt_generation_config(ours, native, folder)
    return family, native, ours, []


def _outward(folder: Path, to: str | None) -> tuple[Family, PreTrainedModel, PreTrainedModel, list[str]]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    our_class = (config.architectures or [""])[0]
    if not hasattr(modeling, our_class):
        raise ValueError(f"{folder} holds a {our_class or 'model of no known class'}, but must hold a Trivium model.")
    family = _choose(config, our_class, to)
    ours = _empty(getattr(modeling, our_class), config)
    native_class = next(theirs for theirs, our in family.classes.items() if our == our_class)
    native = _empty(getattr(transformers, native_class), family.to_native(config))
    _adopt_generation_config(native, ours, folder)
    return family, ours, native, family.left_behind(config)


def _choose(config: PreTrainedConfig, our_class: str, to: str | None) -> Family:
    if to is not None and to not in FAMILIES:
        raise ValueError(f"to is {to!r}, but must be one of {', '.join(FAMILIES)}.")
    obstacles = {name: family.obstacles(config, our_class) for name, family in FAMILIES.items() if to in (None, name)}
    fitting = [name for name, reasons in obstacles.items() if not reasons]
    if len(fitting) > 1:
        raise ValueError(f"Several families have models like this {our_class}: say `to`, one of {', '.join(fitting)}.")
    if not fitting:
        # One that has such a class at all is nearer.
        nearest = min(
            obstacles, key=lambda name: (our_class not in FAMILIES[name].classes.values(), len(obstacles[name]))
        )
        lead = (
            f"{to} has no model like this {our_class}"
            if to
            else (f"No family has a model like this {our_class}; the nearest is {nearest}, but")
        )
        raise ValueError(f"{lead}: {'; '.join(obstacles[nearest])}.")
    return FAMILIES[fitting[0]]


def _empty(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without weights."""
    with torch.device("meta"):
        return model_class(config)


def _adopt_generation_config(model: PreTrainedModel, source: PreTrainedModel, folder: Path) -> None:
    if not model.can_generate():
        return
    saved = (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if saved else source.generation_config
    said = {name: value for name, value in generation.to_dict().items() if not name.startswith("_")}
    model.generation_config = GenerationConfig(**said)
    if hasattr(model.config, "forced_eos_token_id"):  # of seq2seq models; saved twice, it should be the same
        model.config.forced_eos_token_id = generation.forced_eos_token_id


def _convert_tokenizer(folder: Path, output: Path, outward: bool) -> list[str]:
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        return ["there is no tokenizer, so none was converted"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:  # Marian's wants sentencepiece
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"The tokenizer in {folder} needs a package that is not installed: {reason}") from error
    if not (outward and isinstance(tokenizer, TriviumTokenizer)):
        notes = list[str]()
        if tokenizer.pad_token is None and not outward:  # GPT-2's and LLaMA's; any will do, the mask hides it
            tokenizer.pad_token = tokenizer.eos_token
            notes = [f"the tokenizer has no padding token, so {tokenizer.eos_token} is used to pad"]
        tokenizer.save_pretrained(output)
        return notes
    _stock(tokenizer.source).save_pretrained(output)
    if tokenizer.shared_vocabulary:
        return []
    _stock(tokenizer.target).save_pretrained(output / TARGET_TOKENIZER)
    return [f"the tokenizer is the source language's, that of the target language is in {TARGET_TOKENIZER}"]


def _stock(tokenizer: TriviumTokenizer) -> PreTrainedTokenizerFast:
    """Return the same tokenizer in a class of transformers, which recognizes special tokens in texts as all others do.

    Clients that render a chat template or a prompt as text and tokenize it later rely on that.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.standard_backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        split_special_tokens=False,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        chat_template=tokenizer.chat_template,
        extra_special_tokens=tokenizer.extra_special_tokens,
        **tokenizer.special_tokens_map,
    )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Transformers shows one for weights, of which it is given none."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
