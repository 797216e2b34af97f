"""Describe all fields of a recipe, from the docstrings of its sections; also common training arguments."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import Seq2SeqTrainingArguments

from trivium.configuration import PRESETS, TriviumConfig
from trivium.data.mixing import MixArguments, MixedSource
from trivium.recipe import Recipe, recipe_path
from trivium.recipe_checks import GENERATION_TYPES, TYPE_NAMES
from trivium.tasks import TASKS

COMMENT_WIDTH = 100
# Training arguments that most runs need; `training:` accepts all fields of `Seq2SeqTrainingArguments`.
TRAINING = {
    "output_dir": "Folder of the run: model, tokenizer, checkpoints, logs and recipe. Required.",
    "max_steps": "Number of optimizer steps; -1 to train for `num_train_epochs` instead.",
    "num_train_epochs": "Number of passes over the training data, if `max_steps` is not set.",
    "per_device_train_batch_size": "Rows of a batch on each device, unless `inputs.max_tokens` is set.",
    "per_device_eval_batch_size": "Rows of an evaluation batch on each device.",
    "gradient_accumulation_steps": "Number of batches whose gradients are added up for one optimizer step.",
    "train_sampling_strategy": 'Order of the rows: "random", "sequential", or "group_by_length" for less padding.',
    "learning_rate": "Peak of the learning rate.",
    "lr_scheduler_type": 'Schedule of the learning rate after the warm-up: "linear", "cosine", "inverse_sqrt", '
    '"warmup_stable_decay", ...',
    "lr_scheduler_kwargs": "Arguments of the schedule, such as `min_lr` or `num_decay_steps`.",
    "warmup_steps": "Steps over which the learning rate rises from 0 to its peak; below 1, a fraction of all steps.",
    "optim": "Name of the optimizer.",
    "adam_beta1": "Decay of Adam's average of gradients.",
    "adam_beta2": "Decay of Adam's average of squared gradients.",
    "adam_epsilon": "Term added to the denominator of Adam's update.",
    "weight_decay": "Weight decay of AdamW; not applied to biases and norms.",
    "max_grad_norm": "Norm to which gradients are clipped; 0 for no clipping.",
    "eval_strategy": 'When to evaluate on the validation data: "no", "steps" or "epoch".',
    "eval_steps": "Steps between evaluations.",
    "predict_with_generate": "Generate in evaluations, to compute the metrics of the task; only for translation.",
    "save_strategy": 'When to write a checkpoint: "no", "steps", "epoch" or "best".',
    "save_steps": "Steps between checkpoints.",
    "save_total_limit": "Number of checkpoints to keep; null for all.",
    "load_best_model_at_end": "Keep the weights of the best evaluation instead of the last ones.",
    "metric_for_best_model": "Logged quantity that selects the best evaluation, such as `eval_loss`.",
    "greater_is_better": "Whether a larger value of that quantity is better.",
    "logging_steps": "Steps between log entries.",
    "report_to": 'Where to log: "tensorboard", "wandb", "none", or a list.',
    "disable_tqdm": "Show no progress bar.",
    "seed": "Seed of the initial weights, of dropout and, without `data_seed`, of the order of rows.",
    "data_seed": "Seed of the order of rows.",
    "bf16": "Train in bfloat16 mixed precision.",
    "fp16": "Train in float16 mixed precision.",
    "tf32": "Use TF32 on Ampere and newer GPUs.",
    "use_cpu": "Train on the CPU even if there is a GPU.",
    "activation_checkpointing": "Recompute activations in the backward pass, to save memory.",
    "torch_compile": "Compile the model.",
    "dataloader_num_workers": "Processes that load data; 0 for none.",
    "dataloader_pin_memory": "Copy batches into pinned memory; needs a GPU, and is off by default without one.",
    "dataloader_drop_last": "Drop the last, smaller batch of an epoch.",
    "push_to_hub": "Push the model to the Hub.",
    "hub_model_id": "Repository on the Hub, as `owner/name`.",
    "hub_strategy": 'When to push: "end" or "every_save".',
    "hub_private_repo": "Whether a new repository is private.",
}
GENERATION = {
    "num_beams": "Number of beams; 1 for greedy search.",
    "length_penalty": "Exponent of the length by which the scores of beams are divided; above 0 favors longer texts.",
    "early_stopping": 'When beam search stops: true, false or "never".',
    "max_length": "Maximum tokens of a text, including the prompt of a decoder-only model.",
    "max_new_tokens": "Maximum tokens of a continuation or translation; overrides `max_length`.",
    "min_length": "Minimum tokens of a text.",
    "min_new_tokens": "Minimum tokens of a continuation or translation.",
    "no_repeat_ngram_size": "Length of n-grams that may occur only once; 0 for no limit.",
    "repetition_penalty": "Factor by which the logits of tokens that have occurred are reduced; 1 for none.",
    "do_sample": "Sample instead of searching for the most probable text.",
    "temperature": "With `do_sample`: softmax temperature.",
    "top_k": "With `do_sample`: only from the k most probable tokens.",
    "top_p": "With `do_sample`: only from the most probable tokens with this total probability.",
    "min_p": "With `do_sample`: only from tokens with this fraction of the highest probability.",
    "num_return_sequences": "Number of texts to return.",
    "use_cache": "Keep keys and values of earlier tokens.",
}
MODEL = {
    "preset": f"Named shape that the other fields override: {', '.join(PRESETS)}. Null selects the first.",
    "use_cache": "Whether `generate()` keeps keys and values of earlier tokens.",
    "problem_type": '"regression" to treat integer labels as numbers; null to derive the type from the labels.',
}
# Configuration fields that training derives from the tokenizer, the data and the number of layers.
DERIVED = ("vocab_size", "decoder_vocab_size", "is_encoder_decoder")


@dataclass(frozen=True)
class FieldDescription:
    """A field of a recipe.

    Attributes:
        name: Dotted name, such as `data.train`.
        kind: Type and allowed values.
        default: Default value in YAML.
        text: Description.
    """

    name: str
    kind: str
    default: str
    text: str


def describe_fields() -> dict[str, FieldDescription]:
    """Return the fields of a recipe by dotted name; for training and generation, only the common ones."""
    return {field.name: field for field in _describe_all()}


def explain(source: str | Path) -> str:
    """Return the YAML text of a recipe with a comment before each field. The result is a valid recipe.

    Args:
        source: As in `load_recipe`.

    Raises:
        FileNotFoundError: There is no such recipe.
    """
    described = describe_fields()
    lines: list[str] = []
    section = ""
    for line in recipe_path(source).read_text(encoding="utf-8").splitlines():
        if found := re.match(r"( *)(\w+):", line):
            indent, name = found.groups()
            section = name if not indent else section
            field = described.get(name if not indent else f"{section}.{name}" if len(indent) == 2 else "")
            if field is not None:
                prefix = f"{indent}# "
                text = f"{field.text} Default: {field.default}." if field.default else field.text
                lines += textwrap.wrap(text, COMMENT_WIDTH, initial_indent=prefix, subsequent_indent=prefix)
        lines.append(line)
    return "\n".join(lines) + "\n"


def recipe_summaries() -> Iterator[tuple[str, str]]:
    """Yield the name and the first sentence of each bundled recipe."""
    from trivium.recipe import available_recipes

    for name in available_recipes():
        text = recipe_path(name).read_text(encoding="utf-8")
        lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
        comment = " ".join(line.lstrip("# ") for line in lines)
        yield name, re.split(r"(?<=\.)(?<!et al\.)\s", comment)[0]


def _describe_all() -> Iterator[FieldDescription]:
    sections = Recipe.__dataclass_fields__
    texts, hints = _attributes(Recipe), get_type_hints(Recipe)
    for name, entry in sections.items():
        section = entry.default_factory
        kind = f"one of {', '.join(TASKS)}" if name == "task" else _kind_of(hints[name])
        default = "" if section is not MISSING and section is not list else _as_yaml(entry)
        yield FieldDescription(name, kind, default, texts[name])
        if isinstance(section, type) and is_dataclass(section):
            yield from _describe_section(name, section)
    yield from _describe_section("data.mix", MixArguments)
    yield from _describe_section("data.mix.sources", MixedSource)
    yield from _describe_section("model", TriviumConfig, MODEL)
    yield from _describe_training()
    for name, text in GENERATION.items():
        kind = " or ".join(TYPE_NAMES[kind] for kind in GENERATION_TYPES[name])
        yield FieldDescription(f"generation.{name}", kind, "", text)


def _describe_section(section: str, kind: Any, extra: dict[str, str] | None = None) -> Iterator[FieldDescription]:
    texts, hints = {**(extra or {}), **_attributes(kind)}, inspect.get_annotations(kind)
    defaults = {entry.name: _as_yaml(entry) for entry in fields(kind)}
    for name, text in texts.items():
        if (name in defaults) if extra is None else (name not in DERIVED):
            allowed = _kind_of(hints.get(name, str | None))
            yield FieldDescription(f"{section}.{name}", allowed, defaults.get(name, "null"), text)


def _describe_training() -> Iterator[FieldDescription]:
    hints = get_type_hints(Seq2SeqTrainingArguments)
    entries = {entry.name: entry for entry in fields(Seq2SeqTrainingArguments)}
    for name, text in TRAINING.items():
        default = "" if name == "output_dir" else _as_yaml(entries[name])
        yield FieldDescription(f"training.{name}", _kind_of(hints[name]), default, text)


def _attributes(kind: type) -> dict[str, str]:
    """Return the descriptions in the "Attributes" or "Args" section of a class docstring, by name."""
    section = re.search(
        r"^(?:Attributes|Args):\n(.*?)(?:\n\n|\Z)", inspect.getdoc(kind) or "", re.DOTALL | re.MULTILINE
    )
    assert section is not None
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE)
    return {name: re.sub(r"\bNone\b", "null", " ".join(text.split())) for name, text in found}


def _kind_of(hint: Any) -> str:
    """Return the type of a field in YAML terms."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    names = dict.fromkeys(_name_of(kind) for kind in kinds if kind is not NoneType)
    if "a number" in names:
        names.pop("an integer", None)
    return " or ".join([*names, *(["null"] if NoneType in kinds else [])])


def _name_of(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return "a list of mappings" if is_dataclass(get_args(kind)[0]) else "a list of strings"
    if isinstance(kind, type) and is_dataclass(kind):
        return "a mapping"
    return TYPE_NAMES.get(get_origin(kind) or kind, "a string")


def _as_yaml(entry: "Field[Any]") -> str:
    if entry.default_factory is not MISSING:
        return "[]" if entry.default_factory is list else "{}"
    value = getattr(entry.default, "value", entry.default)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
