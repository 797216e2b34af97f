"""Checks of the sections of a recipe, each alone and against the others."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import GenerationConfig, Seq2SeqTrainingArguments

from trivium.configuration import TriviumConfig
from trivium.metrics import METRICS
from trivium.tasks import TASKS, InputArguments

if TYPE_CHECKING:
    from trivium.recipe import Recipe

# Arguments of TriviumConfig besides its fields.
CONFIG_ARGUMENTS = ("problem_type", "label2id", "id2label", "num_labels", "rope_theta")
ENCODER_DECODER_TASKS = ("translation", "summarization")
# Training arguments that apply only to batches of rows, with the values allowed for token batches.
ROW_BATCH_ARGUMENTS: tuple[tuple[str, list[Any]], ...] = (
    ("per_device_train_batch_size", [None]),
    ("train_sampling_strategy", [None, "random"]),
    ("auto_find_batch_size", [None, False]),
    ("dataloader_drop_last", [None, False]),
)
TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}
GENERATION_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens"), (int,)),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "num_return_sequences"), (int,)),
    **dict.fromkeys(("temperature", "top_p", "min_p", "length_penalty", "repetition_penalty"), (float,)),
    **dict.fromkeys(("do_sample", "use_cache"), (bool,)),
    "early_stopping": (bool, str),
}


def _check_task(recipe: "Recipe") -> None:
    _check_choice("task", recipe.task, list(TASKS))


def _check_model(recipe: "Recipe") -> None:
    refuse_unknown("model", recipe.model, ["preset", *(f.name for f in fields(TriviumConfig)), *CONFIG_ARGUMENTS])
    preset = recipe.model.get("preset")
    if recipe.init_from and preset is not None:
        raise ValueError(
            f"init_from is {recipe.init_from!r} and model.preset is {preset!r}, but a saved model has its own "
            "configuration. Set model.preset=null, or model=null to drop all model fields, or init_from=null."
        )


def _check_training(recipe: "Recipe") -> None:
    hints = get_type_hints(Seq2SeqTrainingArguments)
    refuse_unknown("training", recipe.training, list(inspect.signature(Seq2SeqTrainingArguments).parameters))
    for name, value in recipe.training.items():
        types = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
        if choices := _choices(types):
            _check_choice(f"training.{name}", getattr(value, "value", value), [*choices, None])
        # `fsdp` is annotated as a string, but also takes true.
        elif name != "fsdp" and not any(get_origin(kind) is Literal for kind in types):
            _check_type(f"training.{name}", value, tuple(get_origin(kind) or kind for kind in types))
    if not recipe.training.get("output_dir"):
        raise ValueError("training.output_dir is missing. Set it to the folder of the run.")
    generates = recipe.training.get("predict_with_generate", False)
    if recipe.task not in ENCODER_DECODER_TASKS and generates:
        raise ValueError(
            f"training.predict_with_generate is {generates}, but is only for {' and '.join(ENCODER_DECODER_TASKS)}; "
            f"the task is {recipe.task}."
        )


def _check_generation(recipe: "Recipe") -> None:
    refuse_unknown("generation", recipe.generation, list(GenerationConfig().to_dict()))
    for name, value in recipe.generation.items():
        if name in GENERATION_TYPES:
            _check_type(f"generation.{name}", value, GENERATION_TYPES[name])


def _check_metrics(recipe: "Recipe") -> None:
    for name in recipe.metrics or []:
        _check_choice("metrics", name, list(METRICS))
    recipe.kind.check_metrics(recipe.metrics or [])


def _check_inputs(recipe: "Recipe") -> None:
    for name, default in vars(InputArguments()).items():
        value = getattr(recipe.inputs, name)
        tasks = [task for task, entry in TASKS.items() if name in entry.inputs]
        if tasks and recipe.task not in tasks and value != default:
            raise ValueError(
                f"inputs.{name} is {value}, but is only for {', '.join(tasks)}; the task is {recipe.task}."
            )
    if recipe.inputs.packing_strategy != InputArguments.packing_strategy and not recipe.inputs.packing:
        raise ValueError(
            f"inputs.packing_strategy is {recipe.inputs.packing_strategy}, but is only for packed texts. Set "
            "inputs.packing=true, or leave it out."
        )


def _check_prepared(recipe: "Recipe") -> None:
    if recipe.data.prepared is not None and recipe.data.streaming:
        raise ValueError(
            f"data.prepared is {recipe.data.prepared!r} and data.streaming is True, but prepared data are read from "
            "the disk. Set data.streaming=false."
        )


def _check_tokenizer(recipe: "Recipe") -> None:
    if recipe.task not in ENCODER_DECODER_TASKS and not recipe.tokenizer.shared:
        raise ValueError(
            f"tokenizer.shared is False, but separate vocabularies are only for {' and '.join(ENCODER_DECODER_TASKS)};"
            f" the task is {recipe.task}."
        )


def _check_token_batches(recipe: "Recipe") -> None:
    """Check the fields that conflict with token batches (`inputs.max_tokens`), or that require them."""
    max_tokens, training = recipe.inputs.max_tokens, recipe.training
    if max_tokens is not None:
        for name, value, allowed in (
            ("inputs.packing", recipe.inputs.packing, [False]),  # Packed rows all have the same length.
            *((f"training.{name}", training.get(name), allowed) for name, allowed in ROW_BATCH_ARGUMENTS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"inputs.max_tokens is {max_tokens}, but {name} is {value}, which cannot be combined with token "
                    f"batches. Set {name}={json.dumps(allowed[0])}, or inputs.max_tokens=null."
                )
    is_buffered = max_tokens is not None and recipe.data.streaming
    if not is_buffered and recipe.inputs.buffer_size != InputArguments.buffer_size:
        raise ValueError(
            f"inputs.buffer_size is {recipe.inputs.buffer_size}, but is only for data.streaming=true with "
            "inputs.max_tokens. Leave it out."
        )


def _check_averaging(recipe: "Recipe") -> None:
    if recipe.ema_decay is not None and not 0 < recipe.ema_decay < 1:
        raise ValueError(f"ema_decay is {recipe.ema_decay}, but must be greater than 0 and less than 1, or null.")


def _check_r_drop(recipe: "Recipe") -> None:
    weight = recipe.learning.r_drop
    if weight and recipe.task == "question-answering":
        allowed = ", ".join(task for task in TASKS if task != recipe.task)
        raise ValueError(f"learning.r_drop is {weight}, but is only for {allowed}; the task is {recipe.task}.")


def _check_muon(recipe: "Recipe") -> None:
    optimizer = recipe.training.get("optim")
    if recipe.learning.muon_learning_rate is not None and optimizer not in (None, "adamw_torch", "adamw_torch_fused"):
        raise ValueError(
            f"training.optim is {optimizer!r}, but must be adamw_torch or adamw_torch_fused, or null, with "
            f"learning.muon_learning_rate={recipe.learning.muon_learning_rate}: Muon goes with AdamW. Change one."
        )


def _check_distillation(recipe: "Recipe") -> None:
    tasks = [name for name, task in TASKS.items() if "perplexity" in task.metrics]  # those that predict tokens
    if recipe.distillation.teacher is not None and recipe.task not in tasks:
        raise ValueError(
            f"distillation.teacher is {recipe.distillation.teacher!r}, but is only for {', '.join(tasks)}; the task "
            f"is {recipe.task}."
        )
    if recipe.distillation.teacher is not None and (smoothing := recipe.training.get("label_smoothing_factor")):
        raise ValueError(
            f"training.label_smoothing_factor is {smoothing}, but with distillation.teacher it must be 0. Set "
            "model.label_smoothing instead."
        )
    if recipe.distillation.teacher is not None and (weight := recipe.learning.r_drop):
        raise ValueError(
            f"distillation.teacher is {recipe.distillation.teacher!r} and learning.r_drop is {weight}, but each "
            "replaces the loss of a training step. Set learning.r_drop=0, or distillation.teacher=null."
        )


SECTION_CHECKS = (
    _check_task,
    _check_metrics,
    _check_inputs,
    _check_prepared,
    _check_tokenizer,
    _check_model,
    _check_training,
    _check_generation,
    # Checks across sections come last.
    _check_token_batches,
    _check_averaging,
    _check_distillation,
    _check_r_drop,
    _check_muon,
)


def _check_type(name: str, value: Any, types: tuple[type, ...]) -> None:
    """Raise a ValueError unless a value has one of the types, or is null; integers are accepted as floats."""
    is_number = float in types and isinstance(value, int) and not isinstance(value, bool)
    accepted = (*types, Path) if str in types else types
    is_nan = value != value
    is_wrong = not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types) or is_nan
    if value is not None and not is_number and is_wrong:
        allowed = " or ".join(TYPE_NAMES.get(kind, kind.__name__) for kind in types if kind is not NoneType)
        raise ValueError(f"{name} is {value!r}, but must be {allowed}.")


def _choices(types: Sequence[Any]) -> list[str]:
    """Return the values of all enumerations in `types`; empty if `types` has no enumeration."""
    return [choice.value for kind in types if isinstance(kind, type) and issubclass(kind, Enum) for choice in kind]


def strategy_fields() -> list[str]:
    """Return the fields of the `training:` section for which "no" is an allowed value."""
    hints = get_type_hints(Seq2SeqTrainingArguments)
    return [name for name, hint in hints.items() if "no" in _choices(get_args(hint))]


def _check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        listed = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise ValueError(f"{name} is {value!r}, but must be one of {listed}.{_hint(value, allowed)}")


def refuse_unknown(section: str, values: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise a ValueError if a section has an unknown field; suggest similar ones."""
    for name in values:
        if name not in allowed:
            unknown = f"{section}.{name}".removeprefix(".")
            raise ValueError(
                f"{unknown} is unknown.{_hint(name, allowed)} Allowed in {section or 'a recipe'} are "
                f"{', '.join(sorted(allowed))}."
            )


def _hint(name: Any, allowed: Sequence[Any]) -> str:
    close = get_close_matches(str(name), [choice for choice in allowed if isinstance(choice, str)])
    return f" Did you mean {' or '.join(close)}?" if close else ""
