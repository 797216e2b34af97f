"""From a recipe to a trained model, by transformers' own Seq2SeqTrainer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerState,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from trivium.data import load_parallel
from trivium.metrics import load_metric
from trivium.modeling import TriviumForConditionalGeneration
from trivium.recipe import Recipe
from trivium.tokenization import train_tokenizer


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Seq2SeqTrainer:
    """Train what `recipe` describes; its `training.output_dir` then holds model, tokenizer, recipe and logs.

    Args:
        recipe: What to do.
        resume: Go on from the last checkpoint in the output folder.
        overwrite: Start anew in a folder that holds a run, whose checkpoints are deleted.

    Returns:
        The trainer, with the trained model as `.model` and the tokenizer as `.processing_class`.

    Raises:
        ValueError: The output folder holds a run already and neither `resume` nor `overwrite` is set; there is no
            checkpoint to resume; or the recipe asks for what its data cannot give.
    """
    args = recipe.training_arguments()
    checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if checkpoint and not (resume or overwrite):
        raise ValueError(
            f"{args.output_dir} holds a run already ({checkpoint}): resume it (--resume, resume=True), overwrite it "
            "(--overwrite, overwrite=True), or set another training.output_dir."
        )
    if resume and not checkpoint:
        raise ValueError(f"There is no checkpoint in {args.output_dir} to resume: leave resume out to start a run.")
    if resume and checkpoint and (done := steps_of_finished_run(checkpoint, args)):
        raise ValueError(
            f"The run in {args.output_dir} is finished, after {done} steps: set more training.max_steps or "
            "training.num_train_epochs to go on."
        )
    data = load_parallel(recipe.data)
    data.pop("test", None)  # evaluation reads it; to encode it here would be wasted
    if "train" not in data:
        raise ValueError(f"There is nothing to train on: data has {', '.join(data)}, but no train.")
    if args.eval_strategy != "no" and "validation" not in data:
        raise ValueError(f"training.eval_strategy is {args.eval_strategy}, but data has no validation part.")
    set_seed(args.seed)
    model, tokenizer = load_or_build(recipe, data["train"])
    model.generation_config.update(**recipe.generation)
    if overwrite:
        for old in Path(args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(old)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    recipe.save(args.output_dir)

    encoded = encode_pairs(data, tokenizer, model.config.max_position_embeddings)
    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=scores_of(tokenizer, recipe.metrics) if args.predict_with_generate else None,
    )
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer.train(resume_from_checkpoint=checkpoint if resume else None)
    trainer.save_model()
    trainer.save_state()
    return trainer


def steps_of_finished_run(checkpoint: str, args: Seq2SeqTrainingArguments) -> int | None:
    """The steps of a checkpoint that has all that `args` ask for (the Trainer would add one), or None."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if args.max_steps > 0:
        finished = state.global_step >= args.max_steps
    else:
        finished = state.global_step >= state.max_steps and args.num_train_epochs <= state.num_train_epochs
    return state.global_step if finished else None


def load_or_build(recipe: Recipe, pairs: Dataset | IterableDataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that the recipe goes on from, or a new one of its shape with a tokenizer trained on `pairs`."""
    if recipe.init_from:
        tokenizer = AutoTokenizer.from_pretrained(recipe.init_from)
        return AutoModelForSeq2SeqLM.from_pretrained(recipe.init_from), tokenizer
    options = dict(vars(recipe.tokenizer))
    sample = options.pop("sample")
    texts = pairs if sample is None else pairs.take(sample)
    tokenizer = train_tokenizer(
        (row["source"] for row in texts), target_texts=(row["target"] for row in texts), **options
    )
    config = recipe.model_config(
        vocab_size=len(tokenizer),
        decoder_vocab_size=None if tokenizer.shared_vocabulary else tokenizer.target_vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    tokenizer.model_max_length = config.max_position_embeddings
    return TriviumForConditionalGeneration(config), tokenizer


def encode_pairs(
    data: DatasetDict | IterableDatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> DatasetDict | IterableDatasetDict:
    """Sentence pairs as `input_ids`, `attention_mask` and `labels`, cut at `max_length`, and `length` to group by."""

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(batch["source"], text_target=batch["target"], truncation=True, max_length=max_length)
        encoded["length"] = [max(map(len, pair)) for pair in zip(encoded["input_ids"], encoded["labels"], strict=True)]
        return encoded

    return data.map(encode, batched=True, remove_columns=["source", "target"])


def scores_of(tokenizer: PreTrainedTokenizerBase, metrics: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """What the Trainer calls after translating the validation part: the text metrics of the recipe, a number each."""
    scorers = {name: load_metric(name) for name in metrics if name != "perplexity"}  # of which the loss is the log

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        texts = [
            # The Trainer fills up with -100 what is shorter than the rest; decoding knows it only from our tokenizer.
            tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        ]
        return {name: s.compute(predictions=texts[0], references=texts[1])["score"] for name, s in scorers.items()}

    return compute
