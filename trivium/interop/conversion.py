"""Convert saved models between the native transformers classes and Trivium."""

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
from trivium.storage.json_object import read_json_object
from trivium.storage.saved_model import check_model_files
from trivium.tokenization import TriviumTokenizer

MAX_SHARD_SIZE = "5GB"
# neither pickles nor code
HUB_FILES = ["model*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja"]
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.spm")
TARGET_TOKENIZER = "target_tokenizer"  # subfolder of the second tokenizer, if there are two


class Converted(NamedTuple):
    """Result of `convert`.

    Attributes:
        family: Name of the native model family, source or target.
        model: The converted model on the meta device, without weights.
        notes: Differences from the source model, one clause each.
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
    """Convert a saved native transformers model to Trivium or vice versa, including the tokenizer.

    Weights are streamed: at most one output shard is in memory at a time.

    Args:
        source: Folder of a saved model, which is not modified, or a model id on the Hub.
        output: A new or empty folder.
        to: Target family of a Trivium model; None selects the only compatible one. Native models are always converted
            to Trivium.
        max_shard_size: Maximum size of a weight file, in bytes or as a string such as "5GB".
        show_progress: Whether to show a progress bar.

    Returns:
        The family, the converted model and notes on differences.

    Raises:
        FileNotFoundError: The model or one of its files does not exist.
        ValueError: The target has no equivalent model, a file is invalid, or `output` is not empty. In these cases
            nothing is written.
    """
    output = Path(output)
    check_free(output)
    folder = _resolve(source)
    config = _read_config(folder)
    to_native = config.get("model_type") == "trivium"
    if not to_native and to not in (None, "trivium"):
        raise ValueError(f"to is {to!r}, but {source} is not a Trivium model. Convert it first, without `to`.")
    with Checkpoint(folder) as weights:
        try:
            family, before, after, notes = (
                _prepare_to_native(folder, to) if to_native else _prepare_to_trivium(folder, config, weights)
            )
        except StrictDataclassError as error:
            raise ValueError(f"{folder / 'config.json'} is invalid: {error.__cause__ or error}") from error
        native, trivium = (after, before) if to_native else (before, after)
        exchange = Exchange(family, native, trivium)
        steps = (exchange.to_native if to_native else exchange.to_trivium)(weights, weights.shapes)
        unmatched = exchange.native_only if to_native else exchange.dropped(weights)
        change = "newly initialized on loading" if to_native else "dropped"
        notes += [
            f"{name} is {change}: Trivium has none" for name in sorted({name.rpartition(".")[0] for name in unmatched})
        ]
        after.to(next(iter(steps.values()))().dtype)
        with whole_folder(output) as partial:
            with _no_progress_bar():
                after.save_pretrained(partial, state_dict={})  # the weights follow
            write_weights(partial, steps, after, max_shard_size, show_progress)
            notes += _convert_tokenizer(folder, partial, to_native)
    return Converted(family.model_type, after, notes)


def _resolve(source: str | Path) -> Path:
    """Return the local folder of a model; download it from the Hub if `source` is not a folder."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, FileNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{source} is neither a folder nor a model on the Hub: {reason}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Read config.json; reject invalid files and quantized models."""
    check_model_files(folder)
    path = folder / "config.json"
    config = read_json_object(path)
    if "quantization_config" in config:
        raise ValueError(
            f"{path} has a quantization_config, but quantized models cannot be converted. Convert the original model."
        )
    return config


def _prepare_to_trivium(
    folder: Path, config: dict[str, Any], weights: Checkpoint
) -> tuple[Family, PreTrainedModel, PreTrainedModel, list[str]]:
    """Return the family, the empty native and Trivium models, and an empty list of notes."""
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise ValueError(
            f"{folder} holds a model of model_type {config.get('model_type')!r}, but must be one of trivium, "
            f"{', '.join(FAMILIES)}."
        )
    native_class = (config.get("architectures") or [None])[0]
    if native_class not in family.classes:
        raise ValueError(
            f"{folder} holds a {native_class}, but the supported classes of {family.model_type} are "
            f"{', '.join(family.classes)}."
        )
    native_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    presence_flags = {
        name: any(bool(weights[key].any()) for key in weights if key.endswith(tensor))
        for name, tensor in family.presence_flags.items()
    }
    trivium_class = family.classes[native_class]
    trivium_config = family.to_trivium(native_config, trivium_class, **presence_flags)
    trivium = _build_empty(getattr(modeling, trivium_class), trivium_config)
    native = _build_empty(getattr(transformers, native_class), native_config)
    _copy_generation_config(trivium, native, folder)
    return family, native, trivium, []


def _prepare_to_native(folder: Path, to: str | None) -> tuple[Family, PreTrainedModel, PreTrainedModel, list[str]]:
    """Return the family, the empty Trivium and native models, and notes on dropped fields."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    trivium_class = (config.architectures or [""])[0]
    if not hasattr(modeling, trivium_class):
        raise ValueError(
            f"{folder} holds a {trivium_class or 'model of unknown type'}, but must hold a Trivium model."
        )
    family = _select_family(config, trivium_class, to)
    trivium = _build_empty(getattr(modeling, trivium_class), config)
    native_class = next(native for native, name in family.classes.items() if name == trivium_class)
    native = _build_empty(getattr(transformers, native_class), family.to_native(config))
    _copy_generation_config(native, trivium, folder)
    return family, trivium, native, family.dropped_fields(config)


def _select_family(config: PreTrainedConfig, trivium_class: str, to: str | None) -> Family:
    """Return the family `to`, or the only compatible one.

    Raises:
        ValueError: `to` is unknown; or it is None, and no family or more than one is compatible.
    """
    if to is not None and to not in FAMILIES:
        raise ValueError(f"to is {to!r}, but must be one of {', '.join(FAMILIES)}.")
    mismatches = {
        name: family.mismatches(config, trivium_class) for name, family in FAMILIES.items() if to in (None, name)
    }
    compatible = [name for name, reasons in mismatches.items() if not reasons]
    if len(compatible) > 1:
        raise ValueError(
            f"Several families can represent this {trivium_class}. Set `to` to one of {', '.join(compatible)}."
        )
    if not compatible:
        # Prefer families that have an equivalent model class.
        closest = min(
            mismatches,
            key=lambda name: (trivium_class not in FAMILIES[name].classes.values(), len(mismatches[name])),
        )
        lead = (
            f"{to} cannot represent this {trivium_class}"
            if to
            else f"No family can represent this {trivium_class}; the closest is {closest}, but"
        )
        raise ValueError(f"{lead}: {'; '.join(mismatches[closest])}.")
    return FAMILIES[compatible[0]]


def _build_empty(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device, without weights."""
    with torch.device("meta"):
        return model_class(config)


def _copy_generation_config(model: PreTrainedModel, source: PreTrainedModel, folder: Path) -> None:
    """Copy the generation settings saved in `folder` to `model`; if there are none, copy the settings of `source`."""
    if not model.can_generate():
        return
    saved = (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if saved else source.generation_config
    settings = {name: value for name, value in generation.to_dict().items() if not name.startswith("_")}
    model.generation_config = GenerationConfig(**settings)
    if hasattr(model.config, "forced_eos_token_id"):  # seq2seq configurations duplicate it, so keep both in sync
        model.config.forced_eos_token_id = generation.forced_eos_token_id


def _convert_tokenizer(folder: Path, output: Path, to_native: bool) -> list[str]:
    """Save the tokenizer in `output`, in a native class if the target is; return notes on differences."""
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        return ["the source has no tokenizer, so none was converted"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:  # MarianTokenizer needs sentencepiece
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"The tokenizer in {folder} needs a package that is not installed: {reason}") from error
    if not (to_native and isinstance(tokenizer, TriviumTokenizer)):
        notes = list[str]()
        if tokenizer.pad_token is None and not to_native:  # GPT-2 and LLaMA; padding is masked, so any token works
            tokenizer.pad_token = tokenizer.eos_token
            notes = [f"the tokenizer has no padding token, so {tokenizer.eos_token} is used as padding"]
        tokenizer.save_pretrained(output)
        return notes
    to_fast_tokenizer(tokenizer.source).save_pretrained(output)
    if tokenizer.shared_vocabulary:
        return []
    to_fast_tokenizer(tokenizer.target).save_pretrained(output / TARGET_TOKENIZER)
    return [f"the tokenizer is that of the source language; that of the target language is in {TARGET_TOKENIZER}"]


def to_fast_tokenizer(tokenizer: TriviumTokenizer) -> PreTrainedTokenizerFast:
    """Convert to a stock fast tokenizer, which recognizes special tokens in text.

    Clients that render a chat template or prompt as text and tokenize it later rely on that.
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
    """Hide the progress bar that `save_pretrained` shows for weights, because no weights are saved here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
