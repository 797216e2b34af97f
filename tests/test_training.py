"""Runs from recipe to model, in seconds: what `make demo` does in minutes, and the like for every task."""

import json
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, Seq2SeqTrainer
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration, TriviumTokenizer
from trivium.callbacks.facts import describe_hardware
from trivium.cli import app
from trivium.data import DataArguments, fingerprint, load_data, numbers_corpus
from trivium.evaluation import evaluate
from trivium.recipe import Recipe, TokenizerArguments, load_recipe
from trivium.storage.manifest import record
from trivium.tasks import TASKS, InputArguments
from trivium.training import train
from trivium.translation import translate

SMALL = [
    "model.d_model=32",
    "model.ffn_dim=64",
    "data.max_train_samples=400",
    "data.max_validation_samples=20",
    "data.max_test_samples=30",
    "training.max_steps=6",
    "training.save_steps=3",
    "training.eval_steps=3",
    "training.logging_steps=1",
    "training.warmup_steps=1",
    "training.per_device_train_batch_size=16",
    "training.disable_tqdm=true",
]


def small_recipe(folder: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"training.output_dir={folder}", *overrides]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    train(load_recipe("numbers", small_recipe(folder)))
    return folder


def test_a_run_leaves_all_that_it_takes_to_use_it(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "recipe.yaml"} <= names
    assert {"checkpoint-3", "checkpoint-6"} <= names
    model = AutoModelForSeq2SeqLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert isinstance(model, TriviumForConditionalGeneration)
    assert model.config.vocab_size == len(tokenizer) == 600
    assert model.generation_config.max_length == 64
    again = AutoModelForSeq2SeqLM.from_pretrained(run / "checkpoint-6")
    inputs = tokenizer("half past seven", text_target="halb acht", return_tensors="pt")
    assert torch.equal(model.eval()(**inputs).logits, again.eval()(**inputs).logits)


def test_the_validation_part_is_translated_and_scored(run: Path) -> None:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert all({"eval_exact_match", "eval_sacrebleu"} <= set(entry) for entry in evaluations)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]


def test_resuming_gives_the_weights_of_an_unbroken_run(run: Path, tmp_path: Path) -> None:
    whole = AutoModelForSeq2SeqLM.from_pretrained(run).state_dict()
    broken = load_recipe("numbers", small_recipe(tmp_path / "broken"))
    train(broken)
    # As if it had been stopped after the first checkpoint: the folder of the second is gone.
    for path in (tmp_path / "broken" / "checkpoint-6").iterdir():
        path.unlink()
    (tmp_path / "broken" / "checkpoint-6").rmdir()
    resumed = train(broken, resume=True).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_folder_that_holds_a_run_is_not_touched_unasked(run: Path) -> None:
    recipe = load_recipe("numbers", small_recipe(run))
    with pytest.raises(ValueError, match=r"holds a run already .*checkpoint-6.*: resume it .*overwrite it"):
        train(recipe)


def test_a_finished_run_is_not_resumed_but_can_be_prolonged(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = load_recipe("numbers", small_recipe(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"is finished, after 6 steps: set more training\.max_steps"):
        train(recipe, resume=True)
    recipe.training["max_steps"] = 8
    assert train(recipe, resume=True).state.global_step == 8


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]["RunFacts"]["attributes"]


def test_a_run_keeps_what_it_took(run: Path) -> None:
    at_3, at_6, at_the_end = (facts_of(run / name) for name in ("checkpoint-3", "checkpoint-6", "."))
    assert 0 < at_3["seconds"] < at_6["seconds"] <= at_the_end["seconds"] < 600
    assert set(at_the_end) == {"seconds", "hardware", "processes", "examples", "versions", "seed", "data"}
    assert at_the_end["hardware"]
    assert platform.node() not in at_the_end["hardware"]
    assert (at_the_end["processes"], at_the_end["examples"], at_the_end["seed"]) == (1, 400, 42)
    assert (
        at_3["data"]
        == at_the_end["data"]
        == fingerprint(load_recipe(run).data, load_data(load_recipe(run).data)["train"])
    )
    assert at_the_end["versions"] == {
        **{name: version(name) for name in ("trivium", "torch", "transformers")},
        "python": platform.python_version(),
    }


@pytest.mark.parametrize("restore", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_what_it_took_is_counted_over_all_sessions(run: Path, tmp_path: Path, restore: str) -> None:
    """Whether or not the Trainer restores the other callbacks; and a checkpoint without facts is no obstacle."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation_test.json").write_text("{}")
    record(folder, "evaluation_test.json")

    def change(checkpoint: str, **facts: Any) -> None:
        path = folder / checkpoint / "trainer_state.json"
        (folder / checkpoint / "manifest.json").unlink()  # the checksums
        state = json.loads(path.read_text())
        state["stateful_callbacks"]["RunFacts"]["attributes"].update(facts)
        if not facts:
            del state["stateful_callbacks"]["RunFacts"]
        path.write_text(json.dumps(state))

    def go_on(steps: int) -> dict[str, Any]:
        options = [f"training.max_steps={steps}", f"training.restore_callback_states_from_checkpoint={restore}"]
        train(load_recipe("numbers", small_recipe(folder, *options)), resume=True)
        assert facts_of(folder / f"checkpoint-{steps}")["seconds"] <= facts_of(folder)["seconds"]
        return facts_of(folder)

    here = facts_of(folder)["hardware"]
    change("checkpoint-6", seconds=1000.0, hardware="8 x A")
    assert 1000 < go_on(7)["seconds"] < 1600
    assert facts_of(folder)["hardware"] == f"8 x A, then {here}"
    assert not (folder / "evaluation_test.json").exists()  # of the weights before
    assert go_on(8)["hardware"] == f"8 x A, then {here}"
    change("checkpoint-8")
    assert go_on(9)["seconds"] < 600


def test_gpus_are_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert describe_hardware(torch.device("cuda", 1), 4) == "4 x NVIDIA H200"
    assert re.search(r".+, \d+ cores", describe_hardware(torch.device("cpu"), 1))


def test_fine_tuning_goes_on_from_a_saved_model(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe("numbers", small_recipe(tmp_path / "tuned", "training.learning_rate=0"))
    recipe.model, recipe.init_from = {}, str(run)
    tuned = train(recipe).model.state_dict()
    whole = AutoModelForSeq2SeqLM.from_pretrained(run).state_dict()
    assert all(torch.equal(whole[name], tuned[name]) for name in whole)


def test_two_vocabularies_and_streaming(tmp_path: Path) -> None:
    overrides = [
        "tokenizer.shared=false",
        "data.streaming=true",
        "tokenizer.sample=100",
        "training.eval_strategy='no'",
    ]
    overrides += ["training.max_steps=2", "training.train_sampling_strategy=random"]
    trainer = train(load_recipe("numbers", small_recipe(tmp_path / "two", *overrides)))
    tokenizer = trainer.processing_class
    assert trainer.model.config.decoder_vocab_size == tokenizer.target_vocab_size
    assert trainer.model.lm_head.weight is trainer.model.model.decoder.embed_tokens.weight
    assert len(list(translate(trainer.model, tokenizer, ["half past seven"]))) == 1


def test_gradient_accumulation_changes_nothing(tmp_path: Path) -> None:
    """1 x 16 sentences and 4 x 4, with unequal numbers of target tokens, give the same losses and weights."""
    common = ["model.dropout=0", "training.train_sampling_strategy=random", "training.eval_strategy='no'"]
    parts = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=4"]
    whole = train(load_recipe("numbers", small_recipe(tmp_path / "whole", *common)))
    split = train(load_recipe("numbers", small_recipe(tmp_path / "split", *common, *parts)))
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(split.model.state_dict()[name], weight, rtol=0, atol=2e-4)


def test_the_trainers_own_label_smoothing_gives_the_same_loss(tmp_path: Path) -> None:
    """Trainer then takes the labels away and smooths by itself: the decoder must still get its inputs."""
    common = ["model.dropout=0", "training.train_sampling_strategy=random", "training.eval_strategy='no'"]
    trainers = ["model.label_smoothing=0", "training.label_smoothing_factor=0.1"]
    ours = train(load_recipe("numbers", small_recipe(tmp_path / "ours", *common)))
    theirs = train(load_recipe("numbers", small_recipe(tmp_path / "theirs", *common, *trainers)))
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_early_stopping_and_curves(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    overrides = ["training.learning_rate=0", "training.max_steps=30", "early_stopping_patience=2"]
    overrides += ["training.load_best_model_at_end=true", "training.metric_for_best_model=sacrebleu"]
    trainer = train(load_recipe("numbers", small_recipe(folder, *overrides)))
    assert trainer.state.global_step == 9  # nothing gets better after the first of the evaluations at 3, 6 and 9
    assert list(folder.rglob("events.out.tfevents.*"))  # for TensorBoard


def test_the_recipe_must_fit_the_data(tmp_path: Path) -> None:
    for side in ("en", "de"):
        (tmp_path / f"x.{side}").write_text("one\ntwo\n")
    files = ["data.name=null", f"data.train={tmp_path}/x", "training.eval_strategy=steps"]
    with pytest.raises(ValueError, match="data has no validation part"):
        train(load_recipe("numbers", small_recipe(tmp_path / "run", *files)))
    assert not (tmp_path / "run").exists()


# --- Translating and measuring ---------------------------------------------------------------------------------------


def test_translations_keep_the_order_and_do_not_depend_on_the_batch(run: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    texts = ["half past seven", "", "three hundred and forty-two", "  ", "the twenty-first of May", "one"]
    one_by_one = [next(translate(model, tokenizer, [text], max_length=12)) for text in texts]
    assert list(translate(model, tokenizer, iter(texts), batch_size=2, max_length=12)) == one_by_one
    assert one_by_one[1] == one_by_one[3] == ""


@pytest.mark.parametrize("beams", [1, 2])
def test_where_no_batch_size_is_given_batches_have_so_many_tokens(
    run: Path, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    texts = ["one", "three hundred and forty-two", "half past seven"] * 4 + ["seven " * 100]
    most, shapes, generate = 40 * beams, [], model.generate

    def recorded(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(input_ids.shape))
        return generate(input_ids, **kwargs)

    monkeypatch.setattr("trivium.translation.TOKENS_AT_ONCE", most)
    monkeypatch.setattr(model, "generate", recorded)
    options = {"max_length": 8, "num_beams": beams}
    together = list(translate(model, tokenizer, texts, **options))
    assert sum(rows for rows, _ in shapes) == len(texts)
    assert all(rows == 1 or rows * length * beams <= most for rows, length in shapes)
    assert all((rows + 1) * length * beams > most for rows, length in shapes[:-1])  # one more has no room
    assert shapes[0][0] == 1  # the long one
    assert max(shapes)[0] > 3  # short ones
    monkeypatch.undo()
    assert together == list(translate(model, tokenizer, texts, batch_size=1, **options))


def test_translate_refuses_what_it_cannot_do(run: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    with pytest.raises(ValueError, match="num_return_sequences is 3"):
        next(translate(model, tokenizer, ["one"], num_return_sequences=3, num_beams=3))
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(translate(model, tokenizer, ["one"], batch_size=0))


def test_perplexity_is_that_of_the_sentences_one_by_one(run: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    pairs = numbers_corpus()["test"].take(7)
    scores, translations = evaluate(model, tokenizer, pairs, ["perplexity"], batch_size=3, max_length=5)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in pairs:
            batch = tokenizer(row["source"], text_target=row["target"], return_tensors="pt")
            likelihoods = model(**batch).logits.log_softmax(-1)
            total -= likelihoods.gather(-1, batch["labels"][..., None]).sum().item()
            tokens += batch["labels"].numel()
    assert len(translations) == 7
    assert scores["perplexity"]["score"] == pytest.approx(torch.tensor(total / tokens).exp().item(), rel=1e-5)


# --- The same from the command line ----------------------------------------------------------------------------------


def trivium(*arguments: str | Path, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_evaluate_prints_and_keeps_scores(run: Path) -> None:
    code, output, _ = trivium("evaluate", run, "metrics=[exact_match,chrf]", "--beams", "2")
    assert code == 0
    assert "30 texts" in output
    report = json.loads((run / "evaluation_test.json").read_text())
    assert set(report["scores"]) == {"exact_match", "chrf"}
    assert report["scores"]["chrf"]["signature"]
    assert (report["rows"], report["data"]) == (30, "numbers")
    assert report["generation"] == {"do_sample": False, "num_beams": 2}
    assert report["versions"].keys() == {"trivium", "torch", "transformers"}
    assert len((run / "predictions_test.txt").read_text().split("\n")) == 31


def test_translate_from_arguments_file_and_standard_input(run: Path, tmp_path: Path) -> None:
    texts = ["half past seven", "one euro", "two"]
    code, from_arguments, _ = trivium("translate", run, *texts)
    assert code == 0
    assert from_arguments.count("\n") == 3
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    assert trivium("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")[0] == 0
    assert (tmp_path / "out.txt").read_text() == from_arguments
    assert trivium("translate", run, stdin="\n".join(texts))[1] == from_arguments


def test_sampling_is_repeatable(run: Path) -> None:
    draw: list[str | Path] = [
        "translate",
        run,
        "one hundred and two",
        "--sample",
        "--temperature",
        "2",
        "--top-k",
        "50",
        "--seed",
    ]
    assert trivium(*draw, "1")[1] == trivium(*draw, "1")[1]
    assert len({trivium(*draw, str(seed))[1] for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nowhere"], 1, "There is no recipe 'nowhere'"),
        (["train", "numbers", "model.width=3"], 1, "model says 'width'"),
        (["train", "numbers", "--resume", "--overwrite"], 2, "exclude each other"),
        (["train", "numbers", "--resume", "training.output_dir=nowhere"], 1, "There is no checkpoint in nowhere"),
        (["train", "numbers", "model.d_model=250", "training.output_dir=nowhere"], 1, "Error: d_model is 250, but"),
        (["train", "numbers", "model.d_modle=64"], 1, "Did you mean d_model?"),
        (["translate", "nowhere", "text"], 1, "nowhere is not a saved model"),
        (["translate", ".", "text", "--output", "nowhere/x"], 1, "there is no folder nowhere"),
        (["translate", ".", "text", "--top-k", "3"], 2, "go with --sample"),
        (["translate", ".", "--input", "nowhere.txt"], 2, "does not exist"),
        (["evaluate", "nowhere"], 1, "nowhere is not a saved model"),
    ],
)
def test_mistakes_end_with_a_line_and_a_code(arguments: list[str], code: int, message: str) -> None:
    exit_code, _, errors = trivium(*arguments)
    assert exit_code == code
    assert message in " ".join(errors.replace("│", " ").split())
    assert "Traceback" not in errors
    assert not Path("nowhere").exists()


def test_an_unfinished_run_names_its_checkpoints(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").symlink_to(run / "checkpoint-3")
    code, _, errors = trivium("translate", tmp_path, "one")
    assert code == 1
    assert "checkpoint-3" in errors


def test_version() -> None:
    assert trivium("--version")[:2] == (0, f"{version('trivium')}\n")


def test_unknown_split_is_named(run: Path) -> None:
    code, _, errors = trivium("evaluate", run, "--split", "dev")
    assert code == 1
    assert "--split is dev, but the data has train, validation, test" in errors


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["translate"]])
def test_help_teaches(command: list[str]) -> None:
    code, output, _ = trivium(*command, "--help")
    assert code == 0
    assert "trivium train numbers" in output or "Example" in output


# --- Runs of every task ----------------------------------------------------------------------------------------------

WORDS = ["red", "green", "blue", "cold", "warm", "dogs", "cats", "run", "sleep", "sing"]
TEXTS = [" ".join(WORDS[i * k % 10] for k in range(1, 3 + i % 5)) for i in range(1, 61)]
AUTO_CLASSES = {
    "translation": "AutoModelForSeq2SeqLM",
    "completion": "AutoModelForCausalLM",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
}
LABELS = {
    "one": lambda text: "hot" if "red" in text else "not",
    "several": lambda text: [word for word in ("red", "cold") if word in text],
    "number": lambda text: text.count("dogs") - 0.5,
}
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
    """A folder of small files."""

    folder: Path

    def recipe(self, task: str, output: Path, kind: str = "one", **changes: Any) -> Recipe:
        """Six steps, two of them with an evaluation and a checkpoint; `training`, `model` and `data` are merged."""
        files = {"classification": f"{kind}.jsonl", "translation": "pairs.jsonl", "completion": "pairs.jsonl"}
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
        **{kind: [{"text": text, "label": label(text)} for text in TEXTS] for kind, label in LABELS.items()},
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(folder)


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, runs: dict[str, Seq2SeqTrainer]) -> tuple[str, Seq2SeqTrainer]:
    return request.param, runs[request.param]


@pytest.fixture(scope="module")
def runs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seq2SeqTrainer]:
    folder = tmp_path_factory.mktemp("runs")
    return {task: train(corpus.recipe(task, folder / task)) for task in TASKS}


def losses(trainer: Seq2SeqTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def evaluations(trainer: Seq2SeqTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def folder_of(trainer: Seq2SeqTrainer) -> Path:
    return Path(trainer.args.output_dir)


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# --- What a run leaves -----------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_its_auto_class_loads(trained: tuple[str, Seq2SeqTrainer]) -> None:
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


def test_a_run_logs_what_it_learns(trained: tuple[str, Seq2SeqTrainer]) -> None:
    task, trainer = trained
    assert len(losses(trainer)) == 6
    assert all(0 < loss < 10 for loss in losses(trainer))
    measured = {f"eval_{name}" for name in ("accuracy", "f1")} if task == "classification" else set()
    assert len(evaluations(trainer)) == 2
    for entry in evaluations(trainer):
        assert 0 < entry["eval_loss"] < 10
        assert measured <= set(entry)


def test_only_for_labels_are_logits_kept(trained: tuple[str, Seq2SeqTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    task, trainer = trained
    step, kept = trainer.prediction_step, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        outcome = step(*args, **kwargs)
        kept.append(outcome[1] is not None)
        return outcome

    monkeypatch.setattr(trainer, "prediction_step", spy)
    trainer.evaluate()
    assert set(kept) == {task == "classification"}


def test_a_run_can_be_evaluated_from_the_command_line(trained: tuple[str, Seq2SeqTrainer]) -> None:
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
def test_a_run_from_the_command_line(corpus: Corpus, tmp_path: Path, task: str) -> None:
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


# --- How it goes on --------------------------------------------------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "causal-lm": {"inputs": InputArguments(packing=True, max_length=32)},
    "masked-lm": {"inputs": InputArguments(whole_word_mask=True, mlm_probability=0.3)},
    "classification": {},
}


@pytest.mark.parametrize("streaming", [False, True], ids=["eager", "streaming"])
@pytest.mark.parametrize("task", RESUMED)
def test_resuming_any_task_gives_the_weights_of_an_unbroken_run(
    corpus: Corpus, tmp_path: Path, task: str, streaming: bool
) -> None:
    """With dropout, and for `masked-lm` with masks, which both go on as if nothing had been."""
    changes = {**RESUMED[task], "data": {"streaming": streaming}, "training": {"max_steps": 5, "save_steps": 2}}
    recipe = corpus.recipe(task, tmp_path / "run", **changes)
    whole = train(recipe)
    for step in (4, 5):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    resumed = train(recipe, resume=True)
    assert resumed.state.global_step == 5
    assert_same_weights(whole.model, resumed.model)


@pytest.mark.parametrize("task", TASKS)
def test_streams_are_learned_from(corpus: Corpus, tmp_path: Path, task: str) -> None:
    trainer = train(corpus.recipe(task, tmp_path / "run", data={"streaming": True}, training={"max_steps": 3}))
    assert len(losses(trainer)) == 3
    assert len(evaluations(trainer)) == 1


def test_masks_are_others_in_each_epoch(corpus: Corpus, tmp_path: Path) -> None:
    """Even where one batch is all there is: the losses of a model that stays the same differ by the masks."""
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
    assert len({round(loss, 5) for loss in losses(train(recipe))}) > 1


@pytest.mark.parametrize("task", ["causal-lm", "completion"])
def test_the_trainers_loss_is_the_evaluators(corpus: Corpus, tmp_path: Path, task: str) -> None:
    """Of a model that stays the same, over texts of unequal length, in one batch or in several that add up."""
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
        assert losses(trainer) == pytest.approx([scores["perplexity"]["loss"]], rel=1e-4)


# --- What it starts from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"add_bos_token": True}, {"add_eos_token": False}], ids=repr)
def test_a_tokenizer_that_transformers_saved_is_a_start(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path, given: dict[str, bool]
) -> None:
    """As good a one as ours, though it does not say what it puts around a text."""
    shutil.copytree(folder_of(runs["translation"]), tmp_path / "start")
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "start").save_pretrained(tmp_path / "start")
    found = []
    for start in (folder_of(runs["translation"]), tmp_path / "start"):
        options: dict[str, Any] = {"training": {"max_steps": 1}, "tokenizer": given}
        recipe = corpus.recipe("causal-lm", tmp_path / f"from {start.name}", init_from=str(start), **options)
        trainer = train(recipe)
        tokenizer = trainer.processing_class
        found.append((tokenizer(TEXTS)["input_ids"], losses(trainer)))
    assert not isinstance(tokenizer, TriviumTokenizer)
    assert found[0] == found[1]
    for name, *rest in (["evaluate"], ["generate", "red", "--max-new-tokens", "2"]):
        assert CliRunner().invoke(app, [name, str(folder_of(trainer)), *rest]).exit_code == 0


@pytest.mark.parametrize("task", [task for task in TASKS if task != "translation"])
def test_a_half_of_an_encoder_decoder_is_a_start(
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
    assert (ids[-1] == tokenizer.eos_token_id) == (half == "encoder")  # the start's own, where they do no harm
    assert load_file(folder_of(trainer) / "model.safetensors")  # a folder that is whole


def test_a_masked_language_model_is_a_start_for_a_classifier_and_that_for_another(
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


def test_of_two_vocabularies_each_half_has_its_own(corpus: Corpus, tmp_path: Path) -> None:
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
        ("classification", {"d_model": 32}, r"is of another shape than {'d_model': 32} says: \d+ parameters do not"),
        ("classification", {"encoder_layers": 2}, r"do not fit, such as model\.encoder\.layers\.1\."),
        ("translation", {"decoder_layers": 2}, r"do not fit, such as model\.decoder\.layers\.1\."),
        ("causal-lm", {"norm_type": "rmsnorm"}, r"do not fit, such as model\.decoder\..*\.bias"),
        ("causal-lm", {"vocab_size": 300}, r"do not fit, such as model\.decoder\.embed_tokens\.weight"),
    ],
)
def test_a_start_of_another_shape_is_refused(
    corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path, task: str, model: dict[str, Any], message: str
) -> None:
    start = str(folder_of(runs["translation"]))
    with pytest.raises(ValueError, match=message):
        train(corpus.recipe(task, tmp_path / "run", init_from=start, model=model))
    assert not (tmp_path / "run").exists()


def test_a_start_without_the_half_is_refused(corpus: Corpus, runs: dict[str, Seq2SeqTrainer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"decoder_layers is 0: .* it has no decoder"):
        train(corpus.recipe("causal-lm", tmp_path / "run", init_from=str(folder_of(runs["masked-lm"]))))


# --- Labels are learned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LABELS)
def test_a_keyword_that_decides_the_label_is_found(corpus: Corpus, tmp_path: Path, kind: str) -> None:
    fast = {"max_steps": 90, "learning_rate": 1e-2, "eval_strategy": "no", "logging_steps": 30, "save_steps": 1000}
    recipe = corpus.recipe("classification", tmp_path, kind, model={"dropout": 0, "label_smoothing": 0}, training=fast)
    train(recipe)
    config = json.loads((tmp_path / "config.json").read_text())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rows = [{"text": text, "label": LABELS[kind](text)} for text in TEXTS]
    scores, said = evaluate(model, AutoTokenizer.from_pretrained(tmp_path), rows, task="classification")
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
    hits = sum(x == y for x, y in zip(said, truth, strict=True))
    assert hits / len(rows) == scores["accuracy"]["score"]


def test_numbers_in_a_table_are_learned_as_such_if_the_recipe_says_so(corpus: Corpus, tmp_path: Path) -> None:
    lines = ["text,label", *(f"{text},{text.count('dogs')}" for text in TEXTS)]
    (tmp_path / "stars.csv").write_text("\n".join(lines) + "\n")
    files = dict.fromkeys(("train", "validation"), str(tmp_path / "stars.csv"))
    recipe = corpus.recipe("classification", tmp_path / "run", data=files, model={"problem_type": "regression"})
    trainer = train(recipe)
    assert trainer.model.config.num_labels == 1
    assert {"eval_mse", "eval_r2"} <= set(evaluations(trainer)[0])
    names = train(corpus.recipe("classification", tmp_path / "names", data=files))
    assert names.model.config.problem_type == "single_label_classification"


def test_what_the_labels_do_not_allow_is_refused_before_anything_is_written(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "red cats", "label": "lukewarm"}\n')
    validation = {"validation": str(tmp_path / "odd.jsonl")}
    with pytest.raises(ValueError, match="label 'lukewarm' is unknown: the training data has hot, not"):
        train(corpus.recipe("classification", tmp_path / "run", data=validation))
    with pytest.raises(ValueError, match="'mse' does not fit: choose from accuracy, f1"):
        train(corpus.recipe("classification", tmp_path / "run", metrics=["mse"]))
    with pytest.raises(ValueError, match="'f1' does not fit: choose from mse, r2"):
        train(corpus.recipe("classification", tmp_path / "run", "number", metrics=["mse", "f1"]))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_deleted_for_one_that_cannot_begin(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus.recipe("classification", tmp_path / "run", training={"max_steps": 3}))
    (tmp_path / "odd.jsonl").write_text('{"text": "red cats", "label": "lukewarm"}\n')
    validation = {"validation": str(tmp_path / "odd.jsonl")}
    with pytest.raises(ValueError, match="'lukewarm' is unknown"):
        train(corpus.recipe("classification", tmp_path / "run", data=validation), overwrite=True)
    assert (tmp_path / "run" / "checkpoint-3" / "model.safetensors").exists()
    assert len(losses(train(corpus.recipe("classification", tmp_path / "run"), overwrite=True))) == 6


# --- The README ------------------------------------------------------------------------------------------------------

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_the_readme_runs(block: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python, in a folder that holds a (small) run, with a (small) training."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "numbers").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    asked = '["training.output_dir=runs/python"]'
    exec(block.replace(asked, repr(small_recipe(Path("runs/python")))), {})


def test_the_readme_names_what_exists() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"^    (\w+/) ", README, flags=re.MULTILINE) + re.findall(r"\]\((\w[\w/.]*)\)", README):
        assert (root / name).exists(), name
