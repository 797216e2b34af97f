"""Check that a run can be resumed, and select the checkpoint to resume from."""

import json
import logging
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import Seq2SeqTrainingArguments, TrainerState

from trivium.recipe import Recipe, load_recipe
from trivium.storage.checkpoints import STATE_FILE, checkpoints_of, is_complete, last_valid_checkpoint
from trivium.storage.checksums import CHECKSUMS_FILE
from trivium.storage.json_object import describe_changes
from trivium.storage.names import RECIPE_FILE
from trivium.storage.pickles import check_pickles
from trivium.training.callbacks.ema import TRAINED_WEIGHTS_FILE
from trivium.training.resumable import patience_spent
from trivium.training.streaming import load_positions

logger = logging.getLogger(__name__)

# Prefixes of the recipe fields that may change on resumption: duration, evaluation, logging, saving and hardware. All
# other fields affect what is learned.
CHANGEABLE_FIELDS = (
    "card.",
    "generation.",
    "metrics",
    "early_stopping_patience",
    "data.prepared",  # Prepared rows are identical to the rows that training would encode itself.
    "data.validation",
    "data.max_validation_samples",
    "data.test",
    "data.max_test_samples",
    "training.output_dir",
    "training.max_steps",
    "training.num_train_epochs",
    "training.logging_",
    "training.log_",
    "training.disable_tqdm",
    "training.report_to",
    "training.run_name",
    "training.project",
    "training.trackio_",
    "training.skip_memory_metrics",
    "training.include_",
    "training.eval_",
    "training.do_",
    "training.per_device_eval_batch_size",
    "training.prediction_loss_only",
    "training.bf16_full_eval",
    "training.fp16_full_eval",
    "training.batch_eval_metrics",
    "training.predict_with_generate",
    "training.generation_",
    "training.save_",
    "training.load_best_model_at_end",
    "training.enable_jit_checkpoint",
    "training.resume_from_checkpoint",
    "training.restore_callback_states_from_checkpoint",
    "training.push_to_hub",
    "training.hub_",
    "training.dataloader_num_workers",
    "training.dataloader_pin_memory",
    "training.dataloader_persistent_workers",
    "training.dataloader_prefetch_factor",
    "training.dataloader_multiprocessing_context",
    "training.ddp_",
    "training.local_rank",
)
# Prefixes of the fields that may change when a new run starts from the weights of an earlier one. `init_from`
# determines the tokenizer and the shape of the model, and the task selects the head.
CHANGEABLE_WITH_INIT_FROM = (
    *("training.", "data.", "inputs.", "generation.", "learning.", "ema_decay", "distillation."),
    *("model.dropout", "model.attention_dropout", "model.activation_dropout", "model.label_smoothing"),
)
# These two may change as long as the number of rows per optimizer step stays the same (`check_same_batch_size`).
BATCH_SIZE_FIELDS = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")


def checkpoint_to_resume(recipe: Recipe, args: Seq2SeqTrainingArguments) -> tuple[Path, list[Path]]:
    """Select the last valid checkpoint of the run in `args.output_dir`, without changing any file.

    Args:
        recipe: The recipe to resume with.
        args: Its training arguments.

    Returns:
        The checkpoint, and the defective checkpoints after it.

    Raises:
        OSError: A file of a checkpoint cannot be read.
        ValueError: There is no valid checkpoint; a checkpoint has a pickle that could run code; the run was started
            with a different recipe; or the run is already finished.
    """
    run = Path(args.output_dir)
    extra_files = [] if recipe.ema_decay is None else [TRAINED_WEIGHTS_FILE]
    if (run / RECIPE_FILE).is_file():
        check_same_recipe(run, load_recipe(run), recipe)
    checkpoint, defects = last_valid_checkpoint(run, extra_files)
    if checkpoint is None:
        raise ValueError(
            f"There is no checkpoint to resume from in {run}. Leave out resume to start a new run; if a run was "
            "already started there, overwrite it (--overwrite, overwrite=True)."
        )
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    best = run / Path(state.best_model_checkpoint or "").name
    if best != checkpoint and best in checkpoints_of(run):  # The Trainer loads this checkpoint at the end of training.
        check_pickles(best)
    if (run / RECIPE_FILE).is_file():
        check_same_batch_size(run, load_recipe(run), state, args)
    if recipe.data.streaming:
        load_positions(checkpoint, args.world_size)
    if steps := steps_of_finished_run(run, state, recipe, args):
        raise ValueError(
            f"The run in {run} is finished after {steps} steps. To continue training, increase training.max_steps or "
            "training.num_train_epochs or, if it was stopped early, early_stopping_patience."
        )
    for path, defect in defects.items():
        logger.warning("%s is defective: %s. Resuming from %s.", path, defect, checkpoint)
    if not (checkpoint / CHECKSUMS_FILE).is_file():
        logger.warning("%s has no checksums, so changed files cannot be detected.", checkpoint)
    return checkpoint, list(defects)


def steps_of_finished_run(
    run: Path, checkpoint: TrainerState, recipe: Recipe, args: Seq2SeqTrainingArguments
) -> int | None:
    """Return the number of steps of a finished run, or None if the run is not finished.

    A run that was killed between its last checkpoint and saving the model is not finished.
    """
    weights = list(run.glob("*.safetensors"))
    if not (run / STATE_FILE).is_file() or not weights or not all(map(is_complete, weights)):
        return None
    try:
        state = TrainerState.load_from_json(str(run / STATE_FILE))
    except ValueError:
        return None
    is_same_run = str(state.log_history[: len(checkpoint.log_history)]) == str(checkpoint.log_history)
    if not is_same_run or state.global_step != checkpoint.global_step:  # The final model is from another run or step.
        return None
    if args.max_steps > 0:
        finished = state.global_step >= args.max_steps
    else:
        finished = state.global_step >= state.max_steps and args.num_train_epochs <= state.num_train_epochs
    patience = recipe.early_stopping_patience
    stopped = patience is not None and patience_spent(state) >= patience
    return state.global_step if finished or stopped else None


def check_same_recipe(run: Path, old: Recipe, new: Recipe) -> None:
    """Reject a recipe that would not continue the training of the run.

    Raises:
        ValueError: The recipes differ in a field that affects training; the message lists the changed fields.
    """
    changed = {
        name: change
        for name, change in describe_changes(_fields_of(old), _fields_of(new)).items()
        if name not in BATCH_SIZE_FIELDS and not name.startswith(CHANGEABLE_FIELDS)
    }
    if changed:
        raise ValueError(
            f"The run in {run} cannot be resumed with a changed recipe: {'; '.join(changed.values())}. Revert the "
            f"change, or start a new run with another training.output_dir{_how_to_start_from(run, old, new, changed)}"
        )


def _how_to_start_from(run: Path, old: Recipe, new: Recipe, changed: Iterable[str]) -> str:
    """Return the last sentence of an error: a command that starts a new run from this run's weights.

    It is empty if the run has no weights, or if a change affects the tokenizer or the shape of the model, both of
    which `init_from` inherits.
    """
    folders = [*reversed(checkpoints_of(run)), run]
    start = next((folder for folder in folders if _has_weights(folder)), None)
    if start is None or not all(name.startswith(CHANGEABLE_WITH_INIT_FROM) for name in changed):
        return "."
    number = 2
    while (output := run.with_name(f"{run.name}-{number}")).exists():
        number += 1
    overrides: dict[str, Any] = {"init_from": str(start), "training.output_dir": str(output)}
    if old.model.get("preset") is not None:
        overrides["model.preset"] = None
    if old.data.prepared is not None:  # The rows were prepared for a run without `init_from`.
        overrides["data.prepared"] = None
    before, now = _fields_of(old), _fields_of(new)
    for name in describe_changes(before, now):
        overrides.setdefault(name, now.get(name))
    command = ["trivium", "train", str(run), *(_as_override(name, value) for name, value in overrides.items())]
    return f". To start from these weights, run:\n{shlex.join(command)}"


def _has_weights(folder: Path) -> bool:
    """Return True if a folder holds a complete model and its tokenizer; sharded FSDP checkpoints do not."""
    weights = list(folder.glob("model*.safetensors"))
    return bool(weights) and all(map(is_complete, weights)) and (folder / "tokenizer_config.json").is_file()


def _as_override(name: str, value: Any) -> str:
    """Format a field as `name=value`, as `load_recipe` parses it."""
    # YAML reads some words as another type, such as `no`.
    is_plain = re.fullmatch(r"[\w./-]+", str(value)) and OmegaConf.from_dotlist([f"value={value}"])["value"] == value
    return f"{name}={value if is_plain else json.dumps(value, ensure_ascii=False)}"


def check_same_batch_size(run: Path, old: Recipe, state: TrainerState, args: Seq2SeqTrainingArguments) -> None:
    """Reject a recipe that changes the number of rows per optimizer step.

    If only the factors of that number have changed, warn that the results will not be bitwise identical.

    Raises:
        ValueError: The number of rows per step, or of batches per step for token batches, has changed.
    """
    if args.auto_find_batch_size or state.train_batch_size is None:
        return
    facts = state.stateful_callbacks.get("RunFacts", {}).get("attributes", {})
    accumulation_steps = old.training.get("gradient_accumulation_steps") or 1
    before = (state.train_batch_size, accumulation_steps, facts.get("processes", args.world_size))
    now = (args.train_batch_size, args.gradient_accumulation_steps, args.world_size)
    products = [f"{math.prod(factors)} rows ({' x '.join(map(str, factors))})" for factors in (before, now)]
    if math.prod(before) != math.prod(now):
        raise ValueError(
            f"An optimizer step of the run in {run} had {products[0]}, and would now have {products[1]}; the factors "
            "are rows per process, training.gradient_accumulation_steps and processes. The product must not change: "
            "adjust a factor."
        )
    if before != now:
        logger.warning(
            "An optimizer step of the run had %s, and now has %s: the batch size is the same, but the results differ "
            "by rounding.",
            products[0],
            products[1],
        )


def _fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe keyed by dotted name (`model.dropout`), with the defaults of `training`."""
    defaults = {
        field.name: field.default for field in fields(Seq2SeqTrainingArguments) if field.default is not MISSING
    }
    sections = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(sections, dict)
    overrides = {name: value for name, value in sections["training"].items() if value is not None}
    sections["training"] = {**defaults, **overrides}
    return dict(_flatten(sections))


def _flatten(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
