"""From a recipe to a trained model, by transformers' own Trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerState,
    set_seed,
)

from trivium.configuration import TriviumConfig
from trivium.data import fingerprint, load_data
from trivium.metrics import load_metric
from trivium.recipe import Recipe
from trivium.storage.checkpoints import STATE_FILE, checkpoints_of, failure_explained, set_aside
from trivium.storage.manifest import CARD, MANIFEST, RunFolder, record, start_manifest
from trivium.storage.names import RECIPE_FILE
from trivium.tasks import encode_data, label_facts, labels_of_logits, labels_of_targets, make_collator
from trivium.tokenization import train_tokenizer
from trivium.training.callbacks import ExponentialAverage, RunFacts
from trivium.training.callbacks.push import check_hub_arguments
from trivium.training.distributed import check_devices, from_first_process, lock_run
from trivium.training.resume import checkpoint_to_resume
from trivium.training.trainer import RunTrainer

SHOWN = 5  # foreign files that an error names


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Seq2SeqTrainer:
    """Train what `recipe` describes; its `training.output_dir` then holds model, tokenizer, recipe and logs.

    Args:
        recipe: What to do.
        resume: Go on from the last whole checkpoint in the output folder, as if nothing had been.
        overwrite: Start anew in a folder that is not empty; what an earlier run wrote there is deleted, nothing else.

    Returns:
        The trainer, with the trained model as `.model` and the tokenizer as `.processing_class`.

    Raises:
        FileNotFoundError: `init_from` is no folder.
        OSError: The disk is full, or a checkpoint cannot be read.
        NonFiniteError: The loss, the gradients or the weights were no longer finite.
        ValueError: The output folder is not empty and neither `resume` nor `overwrite` is set, or it holds foreign
            files where the run has its own; another training runs there; there is no whole checkpoint to resume, or
            it is of another run than the recipe's, or has a pickle that could run code; the recipe has a secret; or it
            asks for what its data cannot give. Nothing is changed in the output folder then.
    """
    args = check_arguments(recipe)
    with lock_run(Path(args.output_dir)):
        start = from_first_process(lambda: choose_start(recipe, args, resume, overwrite))
        trainer = build_trainer(recipe, args, start)
        if args.should_save:  # of several processes one
            prepare_folder(recipe, start)
        return run_training(trainer, start.checkpoint)


# --- Validate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        run: Its folder.
        checkpoint: What it goes on from; None: it starts anew.
        broken: Later checkpoints, which cannot be used.
    """

    run: Path
    checkpoint: Path | None
    broken: list[Path]


def check_arguments(recipe: Recipe) -> Seq2SeqTrainingArguments:
    """Return the training arguments of a recipe, if they can be trained with here.

    Raises:
        ValueError: They cannot.
    """
    args = recipe.training_arguments()
    check_hub_arguments(args)
    check_devices(args)
    recipe.check_start()
    if recipe.ema_decay is not None:
        ExponentialAverage.check_arguments(args)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # there are none, and to look for them in every step takes time
    args.remove_unused_columns = False  # the collator leaves out what the model does not take
    return args


def choose_start(recipe: Recipe, args: Seq2SeqTrainingArguments, resume: bool, overwrite: bool) -> Start:
    """Return where the training begins, after looking at its folder; nothing is changed there.

    Raises:
        OSError: A checkpoint cannot be read.
        ValueError: It cannot begin there.
    """
    run = Path(args.output_dir)
    folder = RunFolder(run)
    if resume:
        return Start(run, *checkpoint_to_resume(recipe, args))
    if folder.is_run and not overwrite:
        found = checkpoints_of(run) or [run / path for path in folder.own]
        raise ValueError(
            f"{run} holds a run already ({found[-1]}): resume it (--resume, resume=True), overwrite it "
            "(--overwrite, overwrite=True), or set another training.output_dir."
        )
    if folder.foreign and not overwrite:
        raise ValueError(
            f"{run} is not empty: it holds {_listed(folder.foreign)}, which no training of Trivium wrote. Set another "
            "training.output_dir; or keep them beside the run (--overwrite, overwrite=True)."
        )
    if folder.in_the_way:
        raise ValueError(
            f"{run} holds {_listed(folder.in_the_way)}, which no training of Trivium wrote, where a run has files of "
            "its own. They are not deleted: move them away, or set another training.output_dir."
        )
    return Start(run, None, [])


def _listed(paths: list[Path]) -> str:
    shown = ", ".join(map(str, paths[:SHOWN]))
    return shown if len(paths) <= SHOWN else f"{shown} and {len(paths) - SHOWN} more"


# --- Build -----------------------------------------------------------------------------------------------------------


def build_trainer(recipe: Recipe, args: Seq2SeqTrainingArguments, start: Start) -> RunTrainer:
    """Return a Trainer with data, tokenizer and model; nothing is changed in the run's folder.

    Raises:
        ValueError: The data cannot give what the recipe asks for, or are not those that the run began with.
    """
    task = recipe.kind
    data = load_data(recipe.data, task.columns)
    data.pop("test", None)  # evaluation reads it; to encode it here would be wasted
    if "train" not in data:
        raise ValueError(f"There is nothing to train on: data has {', '.join(data)}, but no train.")
    if args.eval_strategy != "no" and "validation" not in data:
        raise ValueError(f"training.eval_strategy is {args.eval_strategy.value}, but data has no validation part.")
    facts = RunFacts(fingerprint(recipe.data, data["train"]) if args.should_save else None)
    if start.checkpoint is not None:
        facts.check_data(TrainerState.load_from_json(str(start.checkpoint / STATE_FILE)))
    set_seed(args.seed)
    model, tokenizer = load_or_build(recipe, data["train"], start.checkpoint)
    task.check_metrics(recipe.metrics or [], model.config)
    if model.can_generate():
        model.generation_config.update(**recipe.generation)
    encoded = encode_data(data, task, tokenizer, model.config, recipe.inputs)
    trainer = RunTrainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        data_collator=make_collator(
            task, tokenizer, model, recipe.inputs, epoch=lambda: int(trainer.state.epoch or 0)
        ),
        processing_class=tokenizer,
        compute_metrics=scoring(recipe, model, tokenizer),
        callbacks=[facts],
        max_tokens=recipe.inputs.max_tokens,
        buffer_size=recipe.inputs.buffer_size,
    )
    if recipe.ema_decay is not None:
        average = ExponentialAverage(recipe.ema_decay)
        average.check_weights(model)
        trainer.add_callback(average)
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    return trainer


# --- Run -------------------------------------------------------------------------------------------------------------


def prepare_folder(recipe: Recipe, start: Start) -> None:
    """Delete what an earlier run left, and write the recipe: never beside weights that it did not make."""
    folder = RunFolder(start.run)
    if folder.is_run:
        folder.adopt()  # first: a run that is killed here is recognised all the same
    if start.checkpoint is None:
        outdated = [path for path in folder.own if path != MANIFEST and not _is_written_by_hand(start.run / path)]
        folder.delete(sorted(outdated, key=lambda path: path.name == RECIPE_FILE))  # last: it describes the rest
        start_manifest(start.run, [RECIPE_FILE])
    else:
        set_aside(start.broken)
        folder.delete(folder.outdated)
        record(start.run, RECIPE_FILE)
    recipe.save(start.run)


def _is_written_by_hand(path: Path) -> bool:
    """Return whether a file is a card that somebody has made their own."""
    if path.name != CARD.name:
        return False
    from trivium.hub.card import has_own_card  # here: it draws, and needs the libraries for it

    return has_own_card(path.parent)


def run_training(trainer: RunTrainer, checkpoint: Path | None) -> RunTrainer:
    """Train to the end, save the model, and push it if that is asked for."""
    args, run = trainer.args, Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.check_finite()
    if trainer.has_shards:  # the model is to be whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with failure_explained("The model", run):
        trainer.save_model(_internal_call=True)  # which pushes nothing
        trainer.save_state()  # after the model: by this a run is known to be finished
    if args.push_to_hub:
        before = set(run.iterdir())
        trainer.push_to_hub(commit_message="Model save", revision=args.hub_revision)
        if args.should_save:
            record(run, *(path.name for path in set(run.iterdir()) - before if path.is_file()))  # as the card
    return trainer


# --- Model and tokenizer ---------------------------------------------------------------------------------------------


def load_or_build(
    recipe: Recipe, rows: Dataset | IterableDataset, checkpoint: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that the recipe goes on from, or a new one of its shape with a tokenizer trained on `rows`.

    A run that is resumed from a `checkpoint` has the tokenizer that it had, which is not trained again.
    """
    task = recipe.kind
    labels: dict[str, Any] = {}
    if "label" in task.columns:
        labels = label_facts((row["label"] for row in rows), recipe.model.get("problem_type"))
    usual = {"add_bos_token": task.add_bos_token, "add_eos_token": task.add_eos_token}
    wanted = {name: given for name in usual if (given := getattr(recipe.tokenizer, name)) is not None}
    if recipe.init_from:
        model = load_start(recipe, labels)
        tokenizer = AutoTokenizer.from_pretrained(recipe.init_from, trust_remote_code=False)
        # Not by its own account: transformers' class, which may have saved it, does not know what it puts around.
        around = tokenizer("")["input_ids"]
        closed = tokenizer.eos_token_id in around
        if not wanted and closed and not task.add_eos_token:  # a translator's closes every text
            wanted = usual
        if wanted:
            kept = {"add_bos_token": tokenizer.bos_token_id in around, "add_eos_token": closed}
            tokenizer = AutoTokenizer.from_pretrained(recipe.init_from, trust_remote_code=False, **{**kept, **wanted})
        if not model.config.is_encoder_decoder and not getattr(tokenizer, "shared_vocabulary", True):
            tokenizer = tokenizer.target if model.config.decoder_layers else tokenizer.source
        return model, tokenizer
    options = {**vars(recipe.tokenizer), **usual, **wanted}
    sample = options.pop("sample")
    texts = rows if sample is None else rows.take(sample)
    targets = (row["target"] for row in texts) if "target" in task.columns else None
    if checkpoint and (checkpoint / "tokenizer_config.json").is_file():  # of FSDP's shards it is not
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    else:
        tokenizer = from_first_process(
            lambda: train_tokenizer((row[task.columns[0]] for row in texts), target_texts=targets, **options)
        )
    config = recipe.model_config(
        vocab_size=len(tokenizer),
        decoder_vocab_size=None if tokenizer.shared_vocabulary else tokenizer.target_vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        **labels,
    )
    tokenizer.model_max_length = config.max_position_embeddings
    return task.model_class(config), tokenizer


def load_start(recipe: Recipe, labels: dict[str, Any]) -> PreTrainedModel:
    """The model that the recipe goes on from: with all parameters saved, but for a head that is another task's.

    Raises:
        ValueError: The recipe asks for parameters that were not saved, or leaves some out.
    """
    model, report = recipe.kind.model_class.from_pretrained(
        recipe.init_from, output_loading_info=True, ignore_mismatched_sizes=True, **{**labels, **recipe.model}
    )
    names = [*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if misfits := sorted(name for name in names if name.startswith(f"{model.base_model_prefix}.")):
        raise ValueError(
            f"The model in {recipe.init_from} is of another shape than {recipe.model} says: {len(misfits)} parameters "
            f"do not fit, such as {misfits[0]}. With init_from, model may only say what does not change them."
        )
    return model


def scoring(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """What the Trainer calls after predicting the validation part; None: the loss will do, and no logits are kept."""
    names = list(recipe.kind.metrics_for(model.config)[:2]) if recipe.metrics is None else recipe.metrics
    if "label" in recipe.kind.columns:
        return scores_of_labels(model.config, names)
    if recipe.training.get("predict_with_generate") and model.config.is_encoder_decoder:
        return scores_of_texts(tokenizer, names)
    return None


def scores_of_labels(config: TriviumConfig, metrics: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """The label metrics of the recipe, a number each."""
    scorers = {name: load_metric(name) for name in metrics}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        said = labels_of_logits(torch.from_numpy(prediction.predictions), config)
        truth = labels_of_targets(torch.from_numpy(prediction.label_ids), config)
        return {name: scorer.compute(predictions=said, references=truth)["score"] for name, scorer in scorers.items()}

    return compute


def scores_of_texts(
    tokenizer: PreTrainedTokenizerBase, metrics: list[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The text metrics of the recipe, a number each."""
    scorers = {name: load_metric(name) for name in metrics if name != "perplexity"}  # of which the loss is the log

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        texts = [
            # The Trainer fills up with -100 what is shorter than the rest; decoding knows it only from our tokenizer.
            tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        ]
        return {name: s.compute(predictions=texts[0], references=texts[1])["score"] for name, s in scorers.items()}

    return compute
