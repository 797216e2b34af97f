"""Train a model from a recipe, with transformers' Trainer: validate, build, run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from trivium.configuration import TriviumConfig
from trivium.data import fingerprint, load_data
from trivium.data.arguments import has_shards
from trivium.data.packing import packing_facts
from trivium.data.shares import EncodedStream
from trivium.recipe import Recipe
from trivium.storage.checkpoints import STATE_FILE, checkpoints_of, explain_write_failure, set_aside
from trivium.storage.manifest import CARD, MANIFEST, RunFolder, record, start_manifest
from trivium.storage.names import RECIPE_FILE
from trivium.tasks import encode_data, encode_stream, make_collator
from trivium.tasks.encode import max_length_of
from trivium.training.callbacks import ExponentialAverage, RunFacts
from trivium.training.callbacks.push import check_hub_arguments
from trivium.training.callbacks.run_facts import encoding_rates
from trivium.training.callbacks.throughput import DataReport
from trivium.training.compute_metrics import make_compute_metrics
from trivium.training.distillation import load_distillation
from trivium.training.distributed import broadcast_from_main, check_devices, lock_run
from trivium.training.initial_model import load_or_build
from trivium.training.muon import MuonFactory
from trivium.training.muon import check_arguments as check_muon_arguments
from trivium.training.prepared import Prepared, load_prepared
from trivium.training.r_drop import RDrop, check_r_drop
from trivium.training.resume import checkpoint_to_resume
from trivium.training.trainer import RunTrainer
from trivium.translation import default_lengths

MAX_LISTED = 5  # maximum number of foreign files to list in an error


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, callbacks: Sequence[TrainerCallback] = ()
) -> Seq2SeqTrainer:
    """Train a model from a recipe, and save model, tokenizer, recipe and logs in `training.output_dir`.

    Args:
        recipe: The recipe of the run.
        resume: Resume from the last valid checkpoint in the output folder, with the same result as an uninterrupted
            run.
        overwrite: Start a new run in a folder that is not empty. Files of an earlier run are deleted, other files are
            kept.
        callbacks: Callbacks to add to the trainer.

    Returns:
        The trainer, with the trained model as `.model` and the tokenizer as `.processing_class`.

    Raises:
        FileNotFoundError: `init_from` is neither a folder nor the name of a model on the Hub.
        OSError: The disk is full, or a checkpoint cannot be read.
        NonFiniteError: The loss, the gradients or the weights are no longer finite.
        ValueError: The output folder is not empty and neither `resume` nor `overwrite` is set; files that Trivium did
            not write are in the way; another training process uses the folder; there is no valid checkpoint to resume
            from, it was written with a different recipe, or it has a pickle that could run code; the recipe contains a
            secret; or the data does not match the recipe. The output folder is left unchanged in these cases.
    """
    args = check_arguments(recipe)
    with lock_run(Path(args.output_dir)):
        start = broadcast_from_main(lambda: choose_start(recipe, args, resume, overwrite))
        trainer = build_trainer(recipe, args, start)
        for callback in callbacks:
            trainer.add_callback(callback)
        if args.should_save:  # on the main process only
            prepare_folder(recipe, start)
        return run_training(trainer, start.checkpoint)


# --- Validate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Starting point of training.

    Attributes:
        run: The run folder.
        checkpoint: The checkpoint to resume from; None starts a new run.
        broken: Defective checkpoints after `checkpoint`.
    """

    run: Path
    checkpoint: Path | None
    broken: list[Path]


def check_arguments(recipe: Recipe) -> Seq2SeqTrainingArguments:
    """Return the training arguments of a recipe after checking them against this machine.

    Raises:
        FileNotFoundError: `init_from` is neither a folder nor the name of a model on the Hub.
        ValueError: The arguments cannot be used on this machine.
    """
    args = recipe.training_arguments()
    check_hub_arguments(args)
    check_devices(args)
    if recipe.learning.r_drop:
        check_r_drop(recipe.learning.r_drop, args)
    recipe.check_start()
    if recipe.ema_decay is not None:
        ExponentialAverage.check_arguments(args)
    if recipe.learning.muon_learning_rate is not None:
        check_muon_arguments(args)
    if args.ddp_find_unused_parameters is None:
        # There are no unused parameters, and searching for them slows down every step.
        args.ddp_find_unused_parameters = False
    args.remove_unused_columns = False  # The collator removes columns that the model does not accept.
    return args


def choose_start(recipe: Recipe, args: Seq2SeqTrainingArguments, resume: bool, overwrite: bool) -> Start:
    """Decide from the contents of the run folder where training starts, without changing any file.

    Raises:
        OSError: A checkpoint cannot be read.
        ValueError: Training cannot start in this folder, or cannot be resumed.
    """
    run = Path(args.output_dir)
    folder = RunFolder(run)
    if resume:
        return Start(run, *checkpoint_to_resume(recipe, args))
    if folder.is_run and not overwrite:
        found = checkpoints_of(run) or [run / path for path in folder.own]
        raise ValueError(
            f"{run} already holds a run ({found[-1]}): resume it (--resume, resume=True), overwrite it "
            "(--overwrite, overwrite=True), or set another training.output_dir."
        )
    if folder.foreign and not overwrite:
        raise ValueError(
            f"{run} is not empty: it holds {_join(folder.foreign)}, which Trivium did not write. Set another "
            "training.output_dir, or keep these files beside the run (--overwrite, overwrite=True)."
        )
    if folder.in_the_way:
        raise ValueError(
            f"{run} holds {_join(folder.in_the_way)}, which Trivium did not write and which the run would replace. "
            "They are not deleted: move them away, or set another training.output_dir."
        )
    return Start(run, None, [])


def _join(paths: list[Path]) -> str:
    listed = ", ".join(map(str, paths[:MAX_LISTED]))
    return listed if len(paths) <= MAX_LISTED else f"{listed} and {len(paths) - MAX_LISTED} more"


# --- Build -----------------------------------------------------------------------------------------------------------


def build_trainer(recipe: Recipe, args: Seq2SeqTrainingArguments, start: Start) -> RunTrainer:
    """Build the Trainer with data, tokenizer and model, without changing the run folder.

    Raises:
        ValueError: The data does not match the recipe, or differs from the data with which the run was started.
    """
    prepared = None
    if recipe.data.prepared is not None:
        folder = Path(recipe.data.prepared)
        prepared = broadcast_from_main(lambda: load_prepared(folder, recipe))
    data = _load_splits(recipe, args, prepared)
    data_hash = None
    if args.should_save:
        data_hash = fingerprint(recipe.data, data["train"]) if prepared is None else prepared.manifest["data"]
    facts = RunFacts(data_hash)
    if start.checkpoint is not None:
        facts.check_data(TrainerState.load_from_json(str(start.checkpoint / STATE_FILE)))
    set_seed(args.seed)
    model, tokenizer = load_or_build(recipe, data["train"], start.checkpoint, prepared)
    recipe.kind.check_metrics(recipe.metrics or [], model.config)
    if model.can_generate():
        settings = model.generation_config
        settings.update(**recipe.generation)
        if settings.max_length is settings.max_new_tokens is None:
            settings.update(**default_lengths(model.config, max_length_of(model.config, recipe.inputs)))
    if prepared is None:
        train_rows, validation_rows = _encode(recipe, data, model.config, tokenizer, facts)
    else:
        prepared.check_model(model.config, tokenizer, recipe)
        train_rows, validation_rows = data["train"], data.get("validation")
    if recipe.inputs.packing and isinstance(train_rows, Dataset):
        facts.packing = packing_facts(train_rows)
    learning = recipe.learning
    trainer = RunTrainer(
        model=model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        data_collator=make_collator(recipe.kind, tokenizer, model, recipe.inputs, epoch=lambda: trainer.current_epoch),
        processing_class=tokenizer,
        compute_metrics=make_compute_metrics(recipe, model, tokenizer),
        callbacks=[facts],
        max_tokens=recipe.inputs.max_tokens,
        buffer_size=recipe.inputs.buffer_size,
        r_drop=RDrop(model, learning.r_drop) if learning.r_drop else None,
        distillation=load_distillation(recipe, model, tokenizer),
    )
    if learning.muon_learning_rate is not None:
        _, options = trainer.get_optimizer_cls_and_kwargs(args)
        options |= {"muon_learning_rate": learning.muon_learning_rate, "weight_decay": args.weight_decay}
        trainer.optimizer_cls_and_kwargs = (MuonFactory, options)
    if facts.packing is not None:
        statistics = {f"packed_{name}": facts.packing[name] for name in ("rows", "cuts")}
        trainer.add_callback(DataReport({**statistics, "padding": facts.packing["padding"]}, trainer.log))
    if recipe.ema_decay is not None:
        average = ExponentialAverage(recipe.ema_decay)
        average.check_weights(model)
        trainer.add_callback(average)
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    return trainer


def _load_splits(recipe: Recipe, args: Seq2SeqTrainingArguments, prepared: Prepared | None) -> Any:
    """Load the training split and, if there is one, the validation split.

    Raises:
        ValueError: There is no training split, or no validation split although the recipe evaluates.
    """
    data = load_data(recipe.data, recipe.kind.columns) if prepared is None else prepared.load()
    data.pop("test", None)  # Only `trivium evaluate` reads the test split.
    if "train" not in data:
        raise ValueError(f"data has the splits {', '.join(data)}, but no training split. Set data.train.")
    if args.eval_strategy != "no" and "validation" not in data:
        raise ValueError(
            f"training.eval_strategy is {args.eval_strategy.value}, but data has no validation split. Set "
            "data.validation, or training.eval_strategy=no."
        )
    return data


def _encode(
    recipe: Recipe,
    data: Any,
    config: TriviumConfig,
    tokenizer: PreTrainedTokenizerBase,
    facts: RunFacts,
) -> tuple[Dataset | EncodedStream, Any]:
    """Encode the splits, and record how fast; return the rows for training and for validation."""
    task, inputs = recipe.kind, recipe.inputs
    began = time.time()
    encoded = encode_data(data, task, tokenizer, config, inputs)
    rows: Dataset | EncodedStream = encoded["train"]
    if recipe.data.streaming:
        rows = encode_stream(data["train"], task, tokenizer, config, inputs, has_shards(recipe.data))
    if isinstance(encoded, DatasetDict):
        facts.encoding = encoding_rates(data, encoded, config, began)
    return rows, encoded.get("validation")


# --- Run -------------------------------------------------------------------------------------------------------------


def prepare_folder(recipe: Recipe, start: Start) -> None:
    """Delete the files of an earlier run, then write the recipe, so that it never describes another run's weights."""
    folder = RunFolder(start.run)
    if folder.is_run:
        folder.adopt()  # The manifest comes first, so that the folder is recognized if the process is killed here.
    if start.checkpoint is None:
        outdated = [path for path in folder.own if path != MANIFEST and not _is_custom_card(start.run / path)]
        # The recipe is deleted last, because it describes the other files.
        folder.delete(sorted(outdated, key=lambda path: path.name == RECIPE_FILE))
        start_manifest(start.run, [RECIPE_FILE])
    else:
        set_aside(start.broken)
        folder.delete(folder.outdated)
        record(start.run, RECIPE_FILE)
    recipe.save(start.run)


def _is_custom_card(path: Path) -> bool:
    """Return True if a file is a model card that was written or edited by hand."""
    if path.name != CARD.name:
        return False
    from trivium.hub.card import has_own_card  # deferred: it imports the plotting libraries

    return has_own_card(path.parent)


def run_training(trainer: RunTrainer, checkpoint: Path | None) -> RunTrainer:
    """Train, save the model, and push it if `push_to_hub` is set."""
    args, run = trainer.args, Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.check_finite()
    if trainer.has_shards:  # Gather the shards: the final model is saved unsharded.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with explain_write_failure("The model", run):
        trainer.save_model(_internal_call=True)  # An internal call saves without pushing.
        trainer.save_state()  # This file is saved after the model, because it marks the run as finished.
    if args.push_to_hub:
        before = set(run.iterdir())
        trainer.push_to_hub(commit_message="Model save", revision=args.hub_revision)
        if args.should_save:
            # Record the files that the push created, such as the model card.
            record(run, *(path.name for path in set(run.iterdir()) - before if path.is_file()))
    return trainer
