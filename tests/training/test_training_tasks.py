"""Test training runs of every task, from recipe to model: outputs, resumption, initialization and learning."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from matrices import slow_unless
from safetensors.torch import load_file
from tiny_training import losses_of
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, Seq2SeqTrainer
from typer.testing import CliRunner

from trivium import TriviumDecoderForSequenceClassification, TriviumTokenizer
from trivium.data import DataArguments
from trivium.evaluation import evaluate
from trivium.hub import render_card
from trivium.recipe import Recipe, load_recipe
from trivium.recipe_checks import ENCODER_DECODER_TASKS
from trivium.recipe_sections import TokenizerArguments
from trivium.tasks import TASKS, InputArguments
from trivium.training import train
from trivium_cli import app

pytestmark = pytest.mark.trains

# --- Runs of every task ----------------------------------------------------------------------------------------------

WORDS = ["red", "green", "blue", "cold", "warm", "dogs", "cats", "run", "sleep", "sing"]
TEXTS = [" ".join(WORDS[i * k % 10] for k in range(1, 3 + i % 5)) for i in range(1, 61)]
AUTO_CLASSES = {
    "translation": "AutoModelForSeq2SeqLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "denoising": "AutoModelForSeq2SeqLM",
    "prefix-lm": "AutoModelForSeq2SeqLM",
    "completion": "AutoModelForCausalLM",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
ANIMALS = {"dogs": "B-animal", "cats": "B-animal"}
LABELS = {
    "one": lambda text: "hot" if "red" in text else "not",
    "several": lambda text: [word for word in ("red", "cold") if word in text],
    "number": lambda text: text.count("dogs") - 0.5,
}
FILES = {
    **dict.fromkeys(("translation", "summarization", "completion"), "pairs.jsonl"),
    "token-classification": "tags.conll",
    "question-answering": "questions.jsonl",
}
METRICS = {"classification": {"accuracy", "f1"}, "token-classification": {"seqeval", "accuracy"}}
SHAPE: dict[str, Any] = {
    "preset": "transformer-micro",
    "encoder_layers": 1,
    "decoder_layers": 1,
    "d_model": 16,
    "num_attention_heads": 2,
    "ffn_dim": 32,
}


@dataclass(frozen=True)
class Corpus:
    """A folder of small data files for all tasks."""

    folder: Path

    def recipe(self, task: str, output: Path, kind: str = "one", **changes: Any) -> Recipe:
        """Return a recipe that trains for six steps, evaluates and saves twice, and includes the given changes."""
        files = {"classification": f"{kind}.jsonl", **FILES}
        path = str(self.folder / files.get(task, "texts.txt"))
        training = {
            "output_dir": str(output),
            "max_steps": 6,
            "save_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "logging_steps": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": True,
            **changes.pop("training", {}),
        }
        data = DataArguments(**{"train": path, "validation": path, "test": path, **changes.pop("data", {})})
        model = {} if "init_from" in changes else SHAPE
        model = {**model, **changes.pop("model", {})}
        tokenizer = TokenizerArguments(**{"vocab_size": 280, **changes.pop("tokenizer", {})})
        return Recipe(task=task, data=data, tokenizer=tokenizer, model=model, training=training, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    files: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"en": text, "de": " " + text.split()[0]} for text in TEXTS],
        "questions": [
            {"question": "which?", "context": text, "answers": {"text": [text.split()[0]], "answer_start": [0]}}
            for text in TEXTS
        ],
        **{kind: [{"text": text, "label": label(text)} for text in TEXTS] for kind, label in LABELS.items()},
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tagged = ("\n".join(f"{word}\t{ANIMALS.get(word, 'O')}" for word in text.split()) for text in TEXTS)
    (folder / "tags.conll").write_text("\n\n".join(tagged))
    return Corpus(folder)


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, runs: dict[str, Seq2SeqTrainer]) -> tuple[str, Seq2SeqTrainer]:
    return request.param, runs[request.param]


@pytest.fixture(scope="module")
def runs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seq2SeqTrainer]:
    folder = tmp_path_factory.mktemp("runs")
    return {task: train(corpus.recipe(task, folder / task)) for task in TASKS}


def evaluations(trainer: Seq2SeqTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def folder_of(trainer: Seq2SeqTrainer) -> Path:
    return Path(trainer.args.output_dir)


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    actual, expected = one.state_dict(), other.state_dict()
    assert actual.keys() == expected.keys()
    for name in actual:
        assert torch.equal(actual[name], expected[name]), name


# --- Outputs of a run ------------------------------------------------------------------------------------------------


def test_auto_class_loads_model_of_run(trained: tuple[str, Seq2SeqTrainer]) -> None:
    task, trainer = trained
    folder = folder_of(trainer)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml", "trainer_state.json"} <= names
    assert {"checkpoint-3", "checkpoint-6"} <= names
    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(folder)
    assert type(model) is TASKS[task].model_class
    assert_same_weights(model, trainer.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, kind = tokenizer("red cats")["input_ids"], TASKS[task]
    assert (ids[0] == tokenizer.bos_token_id) == kind.add_bos_token
    assert (ids[-1] == tokenizer.eos_token_id) == kind.add_eos_token
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert load_recipe(folder).task == task


def test_run_logs_losses_and_metrics(trained: tuple[str, Seq2SeqTrainer]) -> None:
    task, trainer = trained
    assert len(losses_of(trainer)) == 6
    assert all(0 < loss < 10 for loss in losses_of(trainer))
    measured = {f"eval_{name}" for name in METRICS.get(task, ())}
    assert len(evaluations(trainer)) == 2
    for entry in evaluations(trainer):
        assert 0 < entry["eval_loss"] < 10
        assert measured <= set(entry)


def test_logits_are_gathered_only_for_labels(
    trained: tuple[str, Seq2SeqTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, trainer = trained
    step, kept = trainer.prediction_step, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        outcome = step(*args, **kwargs)
        kept.append(outcome[1] is not None)
        return outcome

    monkeypatch.setattr(trainer, "prediction_step", spy)
    trainer.evaluate()
    assert set(kept) == {task in METRICS}


def test_run_can_be_evaluated_from_command_line(trained: tuple[str, Seq2SeqTrainer]) -> None:
    task, trainer = trained
    folder = folder_of(trainer)
    result = CliRunner().invoke(app, ["evaluate", str(folder)])
    assert result.exit_code == 0, result.output
    assert "60 texts" in result.stdout
    scores = json.loads((folder / "evaluation_test.json").read_text())["scores"]
    assert list(scores) == list(TASKS[task].metrics[:2])
    predictions = folder / "predictions_test.txt"
    if TASKS[task].columns == ("text",):
        assert not predictions.exists()
    else:
        assert predictions.read_bytes().count(b"\n") == 60


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_run_from_command_line(corpus: Corpus, tmp_path: Path, task: str) -> None:
    recipe = corpus.recipe(task, tmp_path / "elsewhere", training={"max_steps": 1})
    (tmp_path / "recipe").mkdir()
    recipe.save(tmp_path / "recipe")
    arguments = ["train", str(tmp_path / "recipe" / "recipe.yaml"), f"training.output_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model.safetensors").exists()
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "metrics=[accuracy]"])
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "run" / "evaluation_test.json").read_text())["scores"]) == ["accuracy"]


# --- Resumption ------------------------------------------------------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "causal-lm": {"inputs": InputArguments(packing=True, max_length=32)},
    "masked-lm": {"inputs": InputArguments(whole_word_mask=True, mlm_probability=0.3)},
    "classification": {},
}


@pytest.mark.parametrize(
    ("task", "streaming"),
    [
        ("causal-lm", False),
        pytest.param("causal-lm", True, marks=pytest.mark.slow),
        pytest.param("masked-lm", False, marks=pytest.mark.slow),
        ("masked-lm", True),
        pytest.param("classification", False, marks=pytest.mark.slow),
        pytest.param("classification", True, marks=pytest.mark.slow),
    ],
)
def test_resumed_task_matches_unbroken_run(corpus: Corpus, tmp_path: Path, task: str, streaming: bool) -> None:
    """Resuming must restore the RNG state, on which dropout and the masks of `masked-lm` depend."""
    changes = {**RESUMED[task], "data": {"streaming": streaming}, "training": {"max_steps": 5, "save_steps": 2}}
    recipe = corpus.recipe(task, tmp_path / "run", **changes)
    whole = train(recipe)
    for step in (4, 5):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    resumed = train(recipe, resume=True)
    assert resumed.state.global_step == 5
    assert_same_weights(whole.model, resumed.model)


@pytest.mark.parametrize("task", slow_unless(TASKS, ["translation", "denoising", "causal-lm", "question-answering"]))
def test_streaming_trains(corpus: Corpus, tmp_path: Path, task: str) -> None:
    trainer = train(corpus.recipe(task, tmp_path / "run", data={"streaming": True}, training={"max_steps": 3}))
    assert len(losses_of(trainer)) == 3
    assert len(evaluations(trainer)) == 1


def test_masks_differ_between_epochs(corpus: Corpus, tmp_path: Path) -> None:
    """With a single batch and a learning rate of 0, only different masks can change the loss."""
    still = {"learning_rate": 0.0, "per_device_train_batch_size": 1, "eval_strategy": "no", "max_steps": 4}
    recipe = corpus.recipe(
        "masked-lm",
        tmp_path / "run",
        model={"dropout": 0},
        inputs=InputArguments(mlm_probability=0.5),
        training=still,
        data={"max_train_samples": 1},
        tokenizer={"vocab_size": 262},
    )
    assert len({round(loss, 5) for loss in losses_of(train(recipe))}) > 1


@pytest.mark.parametrize("task", ["causal-lm", "completion"])
def test_trainer_loss_matches_evaluator(corpus: Corpus, tmp_path: Path, task: str) -> None:
    """Compare losses on texts of unequal length, in one batch and in several accumulated batches."""
    inputs = InputArguments(prompt="{source}:") if task == "completion" else InputArguments()
    for size, parts in ((60, 1), (15, 4)):
        recipe = corpus.recipe(
            task,
            tmp_path / f"{size}",
            inputs=inputs,
            model={"dropout": 0, "label_smoothing": 0},
            training={
                "learning_rate": 0.0,
                "max_steps": 1,
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": parts,
                "eval_strategy": "no",
            },
        )
        trainer = train(recipe)
        rows = [json.loads(line) for line in (corpus.folder / "pairs.jsonl").read_text().splitlines()]
        data = [{"text": row["en"], "source": row["en"], "target": row["de"]} for row in rows]
        scores, _ = evaluate(
            trainer.model, trainer.processing_class, data, ["perplexity"], task=task, inputs=inputs, max_new_tokens=1
        )
        assert losses_of(trainer) == pytest.approx([scores["perplexity"]["loss"]], rel=1e-4)


# --- Initialization from a saved model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer_options", slow_unless([{}, {"add_bos_token": True}, {"add_eos_token": False}], [{}]), ids=repr
)
def test_start_from_tokenizer_saved_by_transformers(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path, tokenizer_options: dict[str, bool]
) -> None:
    """transformers' class must work like TriviumTokenizer, although it does not declare whether it adds BOS or EOS."""
    shutil.copytree(folder_of(runs["translation"]), tmp_path / "start")
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "start").save_pretrained(tmp_path / "start")
    found = []
    for start in (folder_of(runs["translation"]), tmp_path / "start"):
        options: dict[str, Any] = {"training": {"max_steps": 1}, "tokenizer": tokenizer_options}
        recipe = corpus.recipe("causal-lm", tmp_path / f"from {start.name}", init_from=str(start), **options)
        trainer = train(recipe)
        tokenizer = trainer.processing_class
        found.append((tokenizer(TEXTS)["input_ids"], losses_of(trainer)))
    assert not isinstance(tokenizer, TriviumTokenizer)
    assert found[0] == found[1]
    for name, *rest in (["evaluate"], ["generate", "red", "--max-new-tokens", "2"]):
        assert CliRunner().invoke(app, [name, str(folder_of(trainer)), *rest]).exit_code == 0


@pytest.mark.parametrize(
    "task",
    slow_unless(
        [task for task in TASKS if task not in (*ENCODER_DECODER_TASKS, "denoising", "prefix-lm")],
        ["causal-lm", "token-classification"],
    ),
)
def test_start_from_half_of_encoder_decoder(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path, task: str
) -> None:
    start = folder_of(runs["translation"])
    changes: dict[str, Any] = {"init_from": str(start), "model": {"dropout": 0.25}, "training": {"learning_rate": 0.0}}
    trainer = train(corpus.recipe(task, tmp_path / "run", **changes))
    half = "decoder" if task in ("causal-lm", "completion") else "encoder"
    config = trainer.model.config
    assert config.dropout == 0.25
    assert (config.encoder_layers, config.decoder_layers) == ((0, 1) if half == "decoder" else (1, 0))
    old, new = runs["translation"].model.state_dict(), trainer.model.state_dict()
    shared = [name for name in new if name.startswith(f"model.{half}.")]
    assert len(shared) > 10
    for name in shared:
        assert torch.equal(new[name], old[name]), name
    ids, tokenizer = trainer.processing_class("red cats")["input_ids"], trainer.processing_class
    assert (ids[0] == tokenizer.bos_token_id) == (half == "decoder")
    # The tokenizer must add the special tokens of the new task: BOS for a decoder, EOS for an encoder.
    assert (ids[-1] == tokenizer.eos_token_id) == (half == "encoder")
    assert load_file(folder_of(trainer) / "model.safetensors")  # the weights were saved


def test_start_classifier_from_masked_lm_and_classifier(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path
) -> None:
    still = {"learning_rate": 0.0, "max_steps": 1, "eval_strategy": "no"}
    start = runs["masked-lm"]
    for kind, labels in (("one", 2), ("number", 1)):
        changes: dict[str, Any] = {"init_from": str(folder_of(start)), "training": still}
        trainer = train(corpus.recipe("classification", tmp_path / kind, kind, **changes))
        old, new = start.model.state_dict(), trainer.model.state_dict()
        assert all(torch.equal(new[name], old[name]) for name in new if name.startswith("model."))
        assert trainer.model.classifier.out_proj.out_features == trainer.model.config.num_labels == labels
        start = trainer


def test_halves_keep_their_own_vocabulary(corpus: Corpus, tmp_path: Path) -> None:
    pairs = [{"en": text, "de": f"größere {i} Straße"} for i, text in enumerate(TEXTS)]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = {"train": str(tmp_path / "two.jsonl"), "validation": str(tmp_path / "two.jsonl")}
    start = train(corpus.recipe("translation", tmp_path / "start", data=data, tokenizer={"shared": False}))
    both = start.processing_class
    assert both.source.get_vocab() != both.target.get_vocab()
    for task, side in (("causal-lm", both.target), ("masked-lm", both.source)):
        trainer = train(corpus.recipe(task, tmp_path / task, init_from=str(tmp_path / "start")))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / task)
        assert tokenizer.shared_vocabulary
        assert tokenizer.get_vocab() == side.get_vocab()
        assert len(tokenizer) == trainer.model.config.vocab_size


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("classification", {"d_model": 32}, r"do not match model={'d_model': 32}: \d+ differ"),
        ("classification", {"encoder_layers": 2}, r"differ, such as model\.encoder\.layers\.1\."),
        ("translation", {"decoder_layers": 2}, r"differ, such as model\.decoder\.layers\.1\."),
        ("causal-lm", {"norm_type": "rmsnorm"}, r"differ, such as model\.decoder\..*\.bias"),
        ("causal-lm", {"vocab_size": 300}, r"differ, such as model\.decoder\.embed_tokens\.weight"),
    ],
)
def test_start_with_another_shape_is_refused(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path, task: str, model: dict[str, Any], message: str
) -> None:
    start = str(folder_of(runs["translation"]))
    with pytest.raises(ValueError, match=message):
        train(corpus.recipe(task, tmp_path / "run", init_from=start, model=model))
    assert not (tmp_path / "run").exists()


def test_start_without_the_half_is_refused(corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"decoder_layers.*0.*decoder"):
        train(corpus.recipe("causal-lm", tmp_path / "run", init_from=str(folder_of(runs["masked-lm"]))))


# --- Learning labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LABELS)
def test_classifier_learns_a_keyword(corpus: Corpus, tmp_path: Path, kind: str) -> None:
    fast = {"max_steps": 90, "learning_rate": 1e-2, "eval_strategy": "no", "logging_steps": 30, "save_steps": 1000}
    recipe = corpus.recipe("classification", tmp_path, kind, model={"dropout": 0, "label_smoothing": 0}, training=fast)
    train(recipe)
    config = json.loads((tmp_path / "config.json").read_text())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rows = [{"text": text, "label": LABELS[kind](text)} for text in TEXTS]
    scores, predictions = evaluate(model, AutoTokenizer.from_pretrained(tmp_path), rows, task="classification")
    if kind == "number":
        assert config["problem_type"] == "regression"
        assert model.config.num_labels == 1
        assert scores["mse"]["score"] < 0.1
        assert scores["r2"]["score"] > 0.7
        return
    names = {"one": ["hot", "not"], "several": ["cold", "red"]}[kind]
    assert config["problem_type"] == {"one": "single", "several": "multi"}[kind] + "_label_classification"
    assert config["id2label"] == {str(i): name for i, name in enumerate(names)}
    assert config["label2id"] == {name: i for i, name in enumerate(names)}
    assert scores["accuracy"]["score"] > 0.95
    truth = [label if kind == "one" else " ".join(sorted(label)) for label in map(LABELS[kind], TEXTS)]
    hits = sum(x == y for x, y in zip(predictions, truth, strict=True))
    assert hits / len(rows) == scores["accuracy"]["score"]


@pytest.mark.parametrize("start", ["new", pytest.param("language model", marks=pytest.mark.slow)])
def test_classifier_of_decoder_reads_last_token(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path, start: str
) -> None:
    """The decoder's class is selected if the recipe, or the model of `init_from`, has no encoder layers."""
    changes: dict[str, Any] = {"model": {"encoder_layers": 0}}
    if start == "language model":
        changes = {"init_from": str(folder_of(runs["causal-lm"]))}
    trainer = train(corpus.recipe("classification", tmp_path / "run", **changes))
    assert type(trainer.model) is TriviumDecoderForSequenceClassification
    assert {"eval_accuracy", "eval_f1"} <= set(evaluations(trainer)[-1])
    tokenizer = trainer.processing_class
    ends_in_eos = tokenizer("red cats")["input_ids"][-1] == tokenizer.eos_token_id
    assert ends_in_eos == (start == "new")
    for command in ("evaluate", "classify"):
        texts = TEXTS[:2] if command == "classify" else []
        result = CliRunner().invoke(app, [command, str(tmp_path / "run"), *texts])
        assert result.exit_code == 0, result.output
    logits = trainer.model.eval()(**tokenizer(TEXTS[1], return_tensors="pt")).logits[0]
    assert result.stdout.splitlines()[1].startswith(trainer.model.config.id2label[logits.argmax().item()])
    assert "Do not use it as the sole basis" in render_card(tmp_path / "run")["README.md"].decode()


def test_numeric_labels_are_regression_if_requested(corpus: Corpus, tmp_path: Path) -> None:
    lines = ["text,label", *(f"{text},{text.count('dogs')}" for text in TEXTS)]
    (tmp_path / "stars.csv").write_text("\n".join(lines) + "\n")
    files = dict.fromkeys(("train", "validation"), str(tmp_path / "stars.csv"))
    recipe = corpus.recipe("classification", tmp_path / "run", data=files, model={"problem_type": "regression"})
    trainer = train(recipe)
    assert trainer.model.config.num_labels == 1
    assert {"eval_mse", "eval_r2"} <= set(evaluations(trainer)[0])
    names = train(corpus.recipe("classification", tmp_path / "names", data=files))
    assert names.model.config.problem_type == "single_label_classification"


def test_invalid_labels_are_refused_before_writing(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "red cats", "label": "lukewarm"}\n')
    validation = {"validation": str(tmp_path / "odd.jsonl")}
    with pytest.raises(ValueError, match=r"label 'lukewarm'.*unknown.*training data.*hot"):
        train(corpus.recipe("classification", tmp_path / "run", data=validation))
    with pytest.raises(ValueError, match=r"'mse'.*accuracy, f1"):
        train(corpus.recipe("classification", tmp_path / "run", metrics=["mse"]))
    with pytest.raises(ValueError, match=r"'f1'.*mse, r2"):
        train(corpus.recipe("classification", tmp_path / "run", "number", metrics=["mse", "f1"]))
    assert not (tmp_path / "run").exists()


def test_invalid_run_does_not_delete_existing_one(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus.recipe("classification", tmp_path / "run", training={"max_steps": 3}))
    (tmp_path / "odd.jsonl").write_text('{"text": "red cats", "label": "lukewarm"}\n')
    validation = {"validation": str(tmp_path / "odd.jsonl")}
    with pytest.raises(ValueError, match=r"'lukewarm'.*unknown"):
        train(corpus.recipe("classification", tmp_path / "run", data=validation), overwrite=True)
    assert (tmp_path / "run" / "checkpoint-3" / "model.safetensors").exists()
    assert len(losses_of(train(corpus.recipe("classification", tmp_path / "run"), overwrite=True))) == 6
