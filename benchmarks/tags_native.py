"""Compare the recipes `lines` and `wnut17` with `BertForTokenClassification`, trained by `Trainer` for equal time.

Both have the same training files, tokenizer, layers, width, heads, feed-forward width and batch size. BERT is
initialized at random, and trained as in the documentation of transformers: random batches, AdamW and a linear schedule
after 100 warm-up steps. Everything else in the recipe is part of the comparison. Time is the CPU time of the training
steps, without evaluation, so that other processes do not count: for each seed the recipe is trained, a few steps of
BERT are timed, and BERT is trained for as many steps as take the time of the recipe.

    python benchmarks/tags_native.py lines lines-train.conll lines-held.conll runs/tags \
        --learning-rates 5e-4 1e-3 2e-3
    python benchmarks/tags_native.py lines lines-train.conll FOLDER/ud-lines/dev.tsv runs/tags --seeds 1 2 3

Accuracy, or the F1 score of entities, is that of the last weights. One JSON line per trained model is appended to
OUTPUT/tags.jsonl, so that an interrupted command continues where it stopped.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from repeated_runs import QUIET, append_result, read_results
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from trivium.data import load_data
from trivium.evaluation import predict_tags
from trivium.recipe import Recipe, load_recipe
from trivium.tasks import encode_data, score_tags
from trivium.training import load_or_build, train

SKIPPED_STEPS, TIMED_STEPS = 10, 30  # steps of BERT before its timing, and steps that are timed


class CpuClock(TrainerCallback):
    """Measure the CPU time of this process at every step, including collation and the optimizer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.times = [time.process_time()]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the time."""
        self.times.append(time.process_time())

    @property
    def seconds(self) -> float:
        """CPU seconds of all steps."""
        return self.times[-1] - self.times[0]


class TaggedData(NamedTuple):
    """Training sentences of a recipe, its tokenizer, and its untrained model, whose shape and tags BERT takes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoded: Dataset


def prepare(recipe: Recipe) -> TaggedData:
    """Encode the training sentences with the tokenizer of the recipe."""
    data = load_data(recipe.data, recipe.kind.columns)
    model, tokenizer = load_or_build(recipe, data["train"])
    encoded = encode_data(data, recipe.kind, tokenizer, model.config, recipe.inputs)["train"]
    return TaggedData(model, tokenizer, encoded.select_columns(["input_ids", "attention_mask", "labels"]))


def train_recipe(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, CpuClock]:
    """Train the model of the recipe."""
    clock = CpuClock()
    trainer = train(recipe, overwrite=True, callbacks=[clock])
    return trainer.model, trainer.processing_class, clock


def build_bert(model: PreTrainedModel, dropout: float) -> BertForTokenClassification:
    """Build an untrained BERT of the shape of a Trivium encoder."""
    config = model.config
    return BertForTokenClassification(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.ffn_dim,
            max_position_embeddings=config.max_position_embeddings,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=config.pad_token_id,
            id2label=config.id2label,
            label2id=config.label2id,
        )
    )


def train_bert(
    recipe: Recipe, data: TaggedData, steps: int, learning_rate: float, dropout: float
) -> tuple[PreTrainedModel, CpuClock]:
    """Train BERT on the encoded sentences of the recipe."""
    set_seed(recipe.training["seed"])
    clock = CpuClock()
    trainer = Trainer(
        model=build_bert(data.model, dropout),
        args=TrainingArguments(
            output_dir=recipe.training["output_dir"],
            max_steps=steps,
            learning_rate=learning_rate,
            warmup_steps=100,
            per_device_train_batch_size=recipe.training["per_device_train_batch_size"],
            eval_strategy="no",
            save_strategy="no",
            logging_steps=100,
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
            seed=recipe.training["seed"],
        ),
        train_dataset=data.encoded,
        data_collator=DataCollatorForTokenClassification(data.tokenizer),
        processing_class=data.tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return trainer.model, clock


def time_bert_step(recipe: Recipe, data: TaggedData, dropout: float) -> float:
    """Return the CPU seconds of a training step of BERT."""
    times = train_bert(recipe, data, SKIPPED_STEPS + TIMED_STEPS, 1e-3, dropout)[1].times
    return (times[-1] - times[SKIPPED_STEPS]) / TIMED_STEPS


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> dict[str, float]:
    """Score the tags that a model predicts for the validation file."""
    rows = load_data(recipe.data, recipe.kind.columns)["validation"]
    predictions = predict_tags(model, tokenizer, rows["words"][:], inputs=recipe.inputs)
    scores = score_tags(recipe.kind.metrics_for(model.config)[0], predictions, rows["tags"][:])
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def main() -> None:
    """Train and score the models that are missing, and print their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["lines", "wnut17"])
    parser.add_argument("train", type=Path, help="training file")
    parser.add_argument("scored", type=Path, help="file to score: held-out sentences, or the development file")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3], help="of BERT")
    parser.add_argument("--dropout", type=float, default=0.1, help="of BERT; 0.1 is its default")
    parser.add_argument("--settings", nargs="*", default=[], help="overrides of the recipe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "tags.jsonl"
    results = read_results(log)
    common = {"recipe": options.recipe, "scored": options.scored.name, "settings": options.settings}
    for seed in options.seeds:
        native = [{"learning_rate": rate, "dropout": options.dropout} for rate in options.learning_rates]
        for side in [{"model": "Trivium"}, *({"model": "BERT", **settings} for settings in native)]:
            key = {**common, "seed": seed, **side}
            if not any(key.items() <= result.items() for result in results):
                result = {**key, **train_and_score(key, options, results)}
                results.append(result)
                append_result(log, result)
                print(json.dumps(result), flush=True)
    print_summary([result for result in results if common.items() <= result.items()])


def train_and_score(
    key: dict[str, Any], options: argparse.Namespace, results: list[dict[str, Any]]
) -> dict[str, float]:
    """Train one model, BERT for the time that the recipe took with the same seed, and score it."""
    with TemporaryDirectory() as folder:
        files = [f"data.train={options.train}", f"data.validation={options.scored}"]
        fixed = [f"training.seed={key['seed']}", f"training.output_dir={folder}/run", *QUIET]
        recipe = load_recipe(options.recipe, [*files, *fixed, *options.settings])
        if key["model"] == "Trivium":
            model, tokenizer, clock = train_recipe(recipe)
        else:
            same = {name: key[name] for name in ("recipe", "scored", "settings", "seed")} | {"model": "Trivium"}
            seconds = next(result["cpu_seconds"] for result in results if same.items() <= result.items())
            data = prepare(recipe)
            steps = round(seconds / time_bert_step(recipe, data, key["dropout"]))
            model, clock = train_bert(recipe, data, steps, key["learning_rate"], key["dropout"])
            tokenizer = data.tokenizer
        facts = {"steps": len(clock.times) - 1, "cpu_seconds": clock.seconds, "parameters": model.num_parameters()}
        return {**score(model, tokenizer, recipe), **facts}


def print_summary(results: list[dict[str, Any]]) -> None:
    """Print mean score, CPU seconds and steps of each model."""
    for name in dict.fromkeys((result["model"], result.get("learning_rate")) for result in results):
        runs = [result for result in results if (result["model"], result.get("learning_rate")) == name]
        scores, seconds, steps = (
            [run[column] for run in sorted(runs, key=lambda run: run["seed"])]
            for column in ("score", "cpu_seconds", "steps")
        )
        print(
            f"{name[0]}{'' if name[1] is None else f', learning rate {name[1]}'}: mean {statistics.mean(scores):.4f} "
            f"of {', '.join(f'{value:.4f}' for value in scores)}; {statistics.mean(seconds):.0f} CPU seconds, "
            f"{statistics.mean(steps):.0f} steps, {runs[0]['parameters']:,} parameters"
        )


if __name__ == "__main__":
    main()
