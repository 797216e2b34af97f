"""Whether a run can be gone on with: from which checkpoint, and as the same run."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import Seq2SeqTrainingArguments, TrainerState

from trivium.recipe import Recipe, load_recipe
from trivium.storage.checkpoints import STATE_FILE, checkpoints_of, has_end, last_whole_checkpoint
from trivium.storage.checksums import CHECKSUMS_FILE
from trivium.storage.names import RECIPE_FILE
from trivium.storage.pickles import check_pickles
from trivium.training.callbacks.ema import TRAINED_WEIGHTS_FILE
from trivium.training.resumable import patience_spent

logger = logging.getLogger(__name__)

# What a run may say anew when it is gone on with, by the beginnings of the names: how long, what is measured and kept,
# and where. All else decides what is learned.
MAY_CHANGE = (
    *("card.", "generation.", "metrics", "early_stopping_patience"),
    *("data.validation", "data.max_validation_samples", "data.test", "data.max_test_samples"),
    *("training.output_dir", "training.max_steps", "training.num_train_epochs"),
    *("training.logging_", "training.log_", "training.disable_tqdm", "training.report_to", "training.run_name"),
    *("training.project", "training.trackio_", "training.skip_memory_metrics", "training.include_"),
    *("training.eval_", "training.do_", "training.per_device_eval_batch_size", "training.prediction_loss_only"),
    *("training.bf16_full_eval", "training.fp16_full_eval", "training.batch_eval_metrics"),
    *("training.predict_with_generate", "training.generation_"),
    *("training.save_", "training.load_best_model_at_end", "training.enable_jit_checkpoint"),
    *("training.resume_from_checkpoint", "training.restore_callback_states_from_checkpoint"),
    *("training.push_to_hub", "training.hub_"),
    *("training.dataloader_num_workers", "training.dataloader_pin_memory", "training.dataloader_persistent_workers"),
    *("training.dataloader_prefetch_factor", "training.dataloader_multiprocessing_context"),
    *("training.ddp_", "training.local_rank"),
)
ROWS = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")  # may, if a step's rows do not


def checkpoint_to_resume(recipe: Recipe, args: Seq2SeqTrainingArguments) -> tuple[Path, list[Path]]:
    """The last whole checkpoint of the run in `args.output_dir`, and those after it, which cannot be used.

    Nothing is changed.

    Args:
        recipe: What the run is to be.
        args: Its training arguments.

    Raises:
        OSError: A file of a checkpoint cannot be read.
        ValueError: There is no checkpoint, or no whole one; it has a pickle that could run code; it is of another run
            than `recipe` describes; or the run is finished.
    """
    run = Path(args.output_dir)
    others = [] if recipe.ema_decay is None else [TRAINED_WEIGHTS_FILE]
    if (run / RECIPE_FILE).is_file():
        check_same_recipe(run, load_recipe(run), recipe)
    checkpoint, flaws = last_whole_checkpoint(run, others)
    if checkpoint is None:
        raise ValueError(
            f"There is no checkpoint in {run} to resume: leave resume out to start a run, or, if one was begun there, "
            "start it again (--overwrite, overwrite=True)."
        )
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    best = run / Path(state.best_model_checkpoint or "").name
    if best != checkpoint and best in checkpoints_of(run):  # it is loaded in the end
        check_pickles(best)
    if (run / RECIPE_FILE).is_file():
        check_same_rows(run, load_recipe(run), state, args)
    if done := steps_of_finished_run(run, state, recipe, args):
        raise ValueError(
            f"The run in {run} is finished, after {done} steps: set more training.max_steps or "
            "training.num_train_epochs to go on, or, if it was stopped early, a larger early_stopping_patience."
        )
    for path, flaw in flaws.items():
        logger.warning("%s is not whole: %s. The run goes on from %s, which is.", path, flaw, checkpoint)
    if not (checkpoint / CHECKSUMS_FILE).is_file():
        logger.warning("%s has no checksums: its files are taken to be what was written.", checkpoint)
    return checkpoint, list(flaws)


def steps_of_finished_run(
    run: Path, checkpoint: TrainerState, recipe: Recipe, args: Seq2SeqTrainingArguments
) -> int | None:
    """The steps of a run that has all that is asked for, its model included, or None.

    A run that was killed after its last checkpoint, but before its model was saved, is not finished.
    """
    weights = list(run.glob("*.safetensors"))
    if not (run / STATE_FILE).is_file() or not weights or not all(map(has_end, weights)):
        return None
    try:
        state = TrainerState.load_from_json(str(run / STATE_FILE))
    except ValueError:
        return None
    follows = str(state.log_history[: len(checkpoint.log_history)]) == str(checkpoint.log_history)
    if not follows or state.global_step != checkpoint.global_step:  # the model is of another run, or has fewer steps
        return None
    if args.max_steps > 0:
        finished = state.global_step >= args.max_steps
    else:
        finished = state.global_step >= state.max_steps and args.num_train_epochs <= state.num_train_epochs
    patience = recipe.early_stopping_patience
    stopped = patience is not None and patience_spent(state) >= patience
    return state.global_step if finished or stopped else None


def check_same_recipe(run: Path, kept: Recipe, given: Recipe) -> None:
    """Refuse to go on with a run as what it was not.

    Raises:
        ValueError: The recipes differ in what decides what is learned; the message names it.
    """
    before, now = _fields_of(kept), _fields_of(given)
    changed = [
        f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in ROWS and not name.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            f"The run in {run} cannot go on as another one: {'; '.join(changed)}. Take that back; or begin a new run, "
            f"with another training.output_dir, and with init_from={run}/checkpoint-N if from these weights."
        )


def check_same_rows(run: Path, kept: Recipe, state: TrainerState, args: Seq2SeqTrainingArguments) -> None:
    """Refuse steps of other sizes than those of a run so far; the same from other parts are not the same to the bit.

    Raises:
        ValueError: A step would have more or less rows, or batches of so many tokens.
    """
    if args.auto_find_batch_size or state.train_batch_size is None:
        return
    facts = state.stateful_callbacks.get("RunFacts", {}).get("attributes", {})
    accumulated = kept.training.get("gradient_accumulation_steps") or 1
    before = (state.train_batch_size, accumulated, facts.get("processes", args.world_size))
    now = (args.train_batch_size, args.gradient_accumulation_steps, args.world_size)
    told = [f"{math.prod(parts)} rows ({' x '.join(map(str, parts))})" for parts in (before, now)]
    if math.prod(before) != math.prod(now):
        raise ValueError(
            f"A step of the run in {run} had {told[0]} and would have {told[1]}, which are rows of a process x "
            "training.gradient_accumulation_steps x processes: make the product what it was."
        )
    if before != now:
        logger.warning("A step of the run had %s and has %s: the same rows, but other roundings.", *told)


def _fields_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, by names such as `model.dropout`; of training also what holds by default."""
    defaults = {each.name: each.default for each in fields(Seq2SeqTrainingArguments) if each.default is not MISSING}
    sections = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(sections, dict)
    sections["training"] = {**defaults, **{k: given for k, given in sections["training"].items() if given is not None}}
    return dict(_flat(sections))


def _flat(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
