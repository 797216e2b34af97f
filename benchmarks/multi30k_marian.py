"""Train the Multi30k baseline: `MarianMTModel` of transformers with a default `Seq2SeqTrainer`.

It shares with Trivium's recipe `multi30k` the data, vocabulary, shape (Transformer-Tiny, Wu et al. 2021, arXiv
2105.14462), dropout, label smoothing and number of beams. Everything else follows the documentation of transformers:
random batches of sentences, AdamW, a linear schedule. The recipe differs in batches grouped by length, pre-norm,
rotary positions, a higher learning rate, and Trivium's code. FOLDER contains the sentences, one per line, in
`train.en`, `train.de`, `val.en`, `val.de`, `test_2016_flickr.en` and `test_2016_flickr.de`:

    python benchmarks/multi30k_marian.py --data FOLDER --output runs/marian --max-steps 20000

The output folder will contain the model, its tokenizer, translations of the test set (`test.de`) and `results.json`.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from peers import SHAPES, Shape
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from trivium.data import DataArguments, load_data
from trivium.metrics import load_metric
from trivium.tokenization import TriviumTokenizer, train_tokenizer

BATCH_SIZE = 64
SAVE_STEPS = 1000


class StepTimer(TrainerCallback):
    """Time every step, including the collation of the next batch, but without evaluation and saving."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.start)

    def undisturbed(self) -> float:
        """Return the mean of the fastest quarter of the steps, which approximates an idle machine."""
        return statistics.fmean(sorted(self.seconds)[: max(1, len(self.seconds) // 4)])


def build_model(tokenizer: TriviumTokenizer, shape: Shape = SHAPES["tiny"]) -> MarianMTModel:
    """Build an untrained model with scaled embeddings, tied across encoder, decoder and output as in the paper."""
    return MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=shape.d_model,
            encoder_layers=shape.layers,
            decoder_layers=shape.layers,
            encoder_ffn_dim=shape.ffn_dim,
            decoder_ffn_dim=shape.ffn_dim,
            encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads,
            dropout=0.1,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
        )
    )


def translate(model: MarianMTModel, tokenizer: TriviumTokenizer, sentences: list[str]) -> list[str]:
    """Translate with 5 beams."""
    model.eval()
    translations: list[str] = []
    for start in range(0, len(sentences), BATCH_SIZE):
        batch = tokenizer(sentences[start : start + BATCH_SIZE], padding=True, return_tensors="pt")
        output = model.generate(**batch, num_beams=5, max_new_tokens=80)
        translations += tokenizer.batch_decode(output, skip_special_tokens=True)
    return translations


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sentences of Multi30k, one per line.")],
    max_steps: Annotated[int, typer.Option(help="Training steps.")],
    output: Annotated[Path, typer.Option(help="Folder for the model and its results.")] = Path("runs/marian"),
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate, after 1,000 warm-up steps.")] = 1e-3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Random seed of initialization, data order and dropout.")] = 42,
    resume: Annotated[bool, typer.Option(help="Resume from the last checkpoint in the output folder.")] = False,
) -> None:
    """Train a Marian model on Multi30k, en-de, and score it on test_2016_flickr."""
    torch.set_num_threads(threads)
    set_seed(seed)
    splits = load_data(
        DataArguments(
            train=f"{data}/train", validation=f"{data}/val", test=f"{data}/test_2016_flickr", source="en", target="de"
        )
    )
    train, test = splits["train"], splits["test"]
    tokenizer = train_tokenizer(train["source"], target_texts=train["target"], vocab_size=6000)
    model = build_model(tokenizer)

    def encode(pairs: Dataset) -> Dataset:
        return pairs.map(
            lambda batch: tokenizer(batch["source"], text_target=batch["target"]),
            batched=True,
            remove_columns=pairs.column_names,
        )

    encoded = encode(train)
    timer = StepTimer()
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(output),
            max_steps=max_steps,
            learning_rate=learning_rate,
            warmup_steps=1000,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            label_smoothing_factor=0.1,
            max_grad_norm=1.0,
            eval_strategy="steps",
            eval_steps=SAVE_STEPS,
            save_steps=SAVE_STEPS,
            save_total_limit=2,
            prediction_loss_only=True,
            logging_steps=100,
            disable_tqdm=True,
            report_to="none",
            seed=seed,
        ),
        train_dataset=encoded,
        eval_dataset=encode(splits["validation"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=[timer],
    )
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    trainer.save_model()

    translations = translate(model, tokenizer, test["source"][:])
    (output / "test.de").write_text("".join(f"{line}\n" for line in translations))
    scores = {
        name: load_metric(name).compute(predictions=translations, references=test["target"][:])
        for name in ("sacrebleu", "bleu_lower", "chrf")
    }
    tokens_per_step = sum(map(len, encoded["labels"])) / len(encoded) * BATCH_SIZE
    results = {
        "scores": {name: {key: score[key] for key in ("score", "signature")} for name, score in scores.items()},
        "parameters": model.num_parameters(),
        "steps": trainer.state.global_step,
        "learning_rate": learning_rate,
        "train_loss": metrics["train_loss"],
        "train_runtime": metrics["train_runtime"],
        "threads": threads,
        "seconds_per_step": statistics.fmean(timer.seconds),
        "undisturbed_seconds_per_step": timer.undisturbed(),
        "undisturbed": "mean of the fastest quarter of the steps, because the machine was shared",
        "target_tokens_per_second": tokens_per_step / statistics.fmean(timer.seconds),
        "undisturbed_target_tokens_per_second": tokens_per_step / timer.undisturbed(),
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
