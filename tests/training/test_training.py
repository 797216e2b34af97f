"""Test short training runs, from recipe to model."""

import json
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import small_recipe
from tiny_training import losses_of
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration
from trivium.data import fingerprint, load_data, numbers_corpus
from trivium.evaluation import evaluate
from trivium.recipe import load_recipe
from trivium.storage.manifest import record
from trivium.training import train
from trivium.training.callbacks.run_facts import describe_hardware
from trivium.translation import translate
from trivium_cli import app

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    train(load_recipe("numbers", small_recipe(folder)))
    return folder


def test_run_folder_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "recipe.yaml"} <= names
    assert {"checkpoint-3", "checkpoint-6"} <= names
    model = AutoModelForSeq2SeqLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert isinstance(model, TriviumForConditionalGeneration)
    assert model.config.vocab_size == len(tokenizer) == 700
    assert model.generation_config.max_length == 64
    again = AutoModelForSeq2SeqLM.from_pretrained(run / "checkpoint-6")
    inputs = tokenizer("half past seven", text_target="halb acht", return_tensors="pt")
    assert torch.equal(model.eval()(**inputs).logits, again.eval()(**inputs).logits)


def test_validation_split_is_translated_and_scored(run: Path) -> None:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert all({"eval_exact_match", "eval_sacrebleu"} <= set(entry) for entry in evaluations)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]


def test_resumed_run_matches_unbroken_run(run: Path, tmp_path: Path) -> None:
    whole = AutoModelForSeq2SeqLM.from_pretrained(run).state_dict()
    broken = load_recipe("numbers", small_recipe(tmp_path / "broken"))
    train(broken)
    # Simulate a run that was stopped after its first checkpoint: delete the folder of the second.
    for path in (tmp_path / "broken" / "checkpoint-6").iterdir():
        path.unlink()
    (tmp_path / "broken" / "checkpoint-6").rmdir()
    resumed = train(broken, resume=True).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_folder_with_a_run_is_refused(run: Path) -> None:
    recipe = load_recipe("numbers", small_recipe(run))
    with pytest.raises(ValueError, match=r"run.*checkpoint-6.*: resume.*overwrite"):
        train(recipe)


def test_finished_run_is_resumed_only_if_extended(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = load_recipe("numbers", small_recipe(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"finished.*6 steps.*training\.max_steps"):
        train(recipe, resume=True)
    recipe.training["max_steps"] = 8
    assert train(recipe, resume=True).state.global_step == 8


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]["RunFacts"]["attributes"]


def test_run_metadata_is_recorded(run: Path) -> None:
    at_3, at_6, at_the_end = (facts_of(run / name) for name in ("checkpoint-3", "checkpoint-6", "."))
    assert 0 < at_3["seconds"] < at_6["seconds"] <= at_the_end["seconds"] < 600
    expected = {"seconds", "hardware", "processes", "examples", "versions", "seed", "data", "packing", "encoding"}
    assert set(at_the_end) == expected
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
def test_run_metadata_is_summed_over_sessions(run: Path, tmp_path: Path, restore: str) -> None:
    """The time is summed whether or not the Trainer restores callbacks; checkpoints without metadata are accepted."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation_test.json").write_text("{}")
    record(folder, "evaluation_test.json")

    def change(checkpoint: str, **facts: Any) -> None:
        path = folder / checkpoint / "trainer_state.json"
        (folder / checkpoint / "manifest.json").unlink()  # it contains checksums, which the edit would break
        state = json.loads(path.read_text())
        state["stateful_callbacks"]["RunFacts"]["attributes"].update(facts)
        if not facts:
            del state["stateful_callbacks"]["RunFacts"]
        path.write_text(json.dumps(state))

    def resume_until(steps: int) -> dict[str, Any]:
        options = [f"training.max_steps={steps}", f"training.restore_callback_states_from_checkpoint={restore}"]
        train(load_recipe("numbers", small_recipe(folder, *options)), resume=True)
        assert facts_of(folder / f"checkpoint-{steps}")["seconds"] <= facts_of(folder)["seconds"]
        return facts_of(folder)

    here = facts_of(folder)["hardware"]
    change("checkpoint-6", seconds=1000.0, hardware="8 x A")
    assert 1000 < resume_until(7)["seconds"] < 1600
    assert facts_of(folder)["hardware"] == f"8 x A, then {here}"
    assert not (folder / "evaluation_test.json").exists()  # the report was about the weights before resuming
    assert resume_until(8)["hardware"] == f"8 x A, then {here}"
    change("checkpoint-8")
    assert resume_until(9)["seconds"] < 600


def test_gpus_are_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert describe_hardware(torch.device("cuda", 1), 4) == "4 x NVIDIA H200"
    assert re.search(r".+, \d+ cores", describe_hardware(torch.device("cpu"), 1))


def test_fine_tuning_starts_from_saved_model(run: Path, tmp_path: Path) -> None:
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


def test_gradient_accumulation_matches_full_batch(tmp_path: Path) -> None:
    """One batch of 16 sentences gives the same losses and weights as four accumulated batches with unequal tokens."""
    common = ["model.dropout=0", "training.train_sampling_strategy=random", "training.eval_strategy='no'"]
    parts = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=4"]
    whole = train(load_recipe("numbers", small_recipe(tmp_path / "whole", *common)))
    split = train(load_recipe("numbers", small_recipe(tmp_path / "split", *common, *parts)))
    losses = [losses_of(run) for run in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(split.model.state_dict()[name], weight, rtol=0, atol=2e-4)


def test_trainer_label_smoothing_gives_same_loss(tmp_path: Path) -> None:
    """With its own label smoothing, the Trainer removes the labels, from which the decoder inputs are derived."""
    common = ["model.dropout=0", "training.train_sampling_strategy=random", "training.eval_strategy='no'"]
    trainers = ["model.label_smoothing=0", "training.label_smoothing_factor=0.1"]
    model_smoothing = train(load_recipe("numbers", small_recipe(tmp_path / "model", *common)))
    trainer_smoothing = train(load_recipe("numbers", small_recipe(tmp_path / "trainer", *common, *trainers)))
    losses = [losses_of(run) for run in (model_smoothing, trainer_smoothing)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_early_stopping_and_curves(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    overrides = ["training.learning_rate=0", "training.max_steps=30", "early_stopping_patience=2"]
    overrides += ["training.load_best_model_at_end=true", "training.metric_for_best_model=sacrebleu"]
    trainer = train(load_recipe("numbers", small_recipe(folder, *overrides)))
    assert trainer.state.global_step == 9  # evaluated at steps 3, 6 and 9, without improvement after step 3
    assert list(folder.rglob("events.out.tfevents.*"))  # TensorBoard logs


def test_recipe_must_fit_the_data(tmp_path: Path) -> None:
    for side in ("en", "de"):
        (tmp_path / f"x.{side}").write_text("one\ntwo\n")
    files = ["data.name=null", f"data.train={tmp_path}/x", "training.eval_strategy=steps"]
    with pytest.raises(ValueError, match=r"eval_strategy.*data.*validation"):
        train(load_recipe("numbers", small_recipe(tmp_path / "run", *files)))
    assert not (tmp_path / "run").exists()


# --- Translation and evaluation --------------------------------------------------------------------------------------


def test_translations_are_ordered_and_batch_independent(run: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    texts = ["half past seven", "", "three hundred and forty-two", "  ", "the twenty-first of May", "one"]
    one_by_one = [next(translate(model, tokenizer, [text], max_length=12)) for text in texts]
    assert list(translate(model, tokenizer, iter(texts), batch_size=2, max_length=12)) == one_by_one
    assert one_by_one[1] == one_by_one[3] == ""


@pytest.mark.parametrize("beams", [1, 2])
def test_default_batch_size_is_a_token_budget(run: Path, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    texts = ["one", "three hundred and forty-two", "half past seven"] * 4 + ["seven " * 100]
    most, shapes, generate = 40 * beams, [], model.generate

    def recorded(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(input_ids.shape))
        return generate(input_ids, **kwargs)

    monkeypatch.setattr("trivium.translation.MAX_BATCH_TOKENS", most)
    monkeypatch.setattr(model, "generate", recorded)
    options = {"max_length": 8, "num_beams": beams}
    together = list(translate(model, tokenizer, texts, **options))
    assert sum(rows for rows, _ in shapes) == len(texts)
    assert all(rows == 1 or rows * length * beams <= most for rows, length in shapes)
    # Every batch but the last is as large as the token budget allows.
    assert all((rows + 1) * length * beams > most for rows, length in shapes[:-1])
    assert shapes[0][0] == 1  # the long text is alone in its batch
    assert max(shapes)[0] > 3  # short texts share a batch
    monkeypatch.undo()
    assert together == list(translate(model, tokenizer, texts, batch_size=1, **options))


def test_translate_refuses_invalid_arguments(run: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    with pytest.raises(ValueError, match=r"num_return_sequences.*3"):
        next(translate(model, tokenizer, ["one"], num_return_sequences=3, num_beams=3))
    with pytest.raises(ValueError, match=r"batch_size.*0"):
        next(translate(model, tokenizer, ["one"], batch_size=0))


def test_perplexity_matches_single_sentences(run: Path) -> None:
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


# --- Command line ----------------------------------------------------------------------------------------------------


def trivium(*arguments: str | Path, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_evaluate_prints_and_saves_scores(run: Path) -> None:
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


def test_translate_arguments_file_and_stdin(run: Path, tmp_path: Path) -> None:
    texts = ["half past seven", "one euro", "two"]
    code, from_arguments, _ = trivium("translate", run, *texts)
    assert code == 0
    assert from_arguments.count("\n") == 3
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    assert trivium("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")[0] == 0
    assert (tmp_path / "out.txt").read_text() == from_arguments
    assert trivium("translate", run, stdin="\n".join(texts))[1] == from_arguments


def test_sampling_is_reproducible_with_seed(run: Path) -> None:
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
        (["train", "numbers", "model.width=3"], 1, "model.width is unknown"),
        (["train", "numbers", "--resume", "--overwrite"], 2, "mutually exclusive"),
        (["train", "numbers", "--resume", "training.output_dir=nowhere"], 1, "There is no checkpoint to resume"),
        (["train", "numbers", "model.d_model=250", "training.output_dir=nowhere"], 1, "Error: d_model is 250, but"),
        (["train", "numbers", "model.d_modle=64"], 1, "Did you mean d_model?"),
        (["translate", "nowhere", "text"], 1, "nowhere is not a saved model"),
        (["translate", ".", "text", "--output", "nowhere/x"], 1, "there is no folder nowhere"),
        (["translate", ".", "text", "--top-k", "3"], 2, "require --sample"),
        (["translate", ".", "--input", "nowhere.txt"], 2, "does not exist"),
        (["evaluate", "nowhere"], 1, "nowhere is not a saved model"),
    ],
)
def test_errors_are_one_line_with_exit_code(arguments: list[str], code: int, message: str) -> None:
    exit_code, _, errors = trivium(*arguments)
    assert exit_code == code
    assert message in " ".join(errors.replace("│", " ").split())
    assert "Traceback" not in errors
    assert not Path("nowhere").exists()


def test_unfinished_run_lists_its_checkpoints(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").symlink_to(run / "checkpoint-3")
    code, _, errors = trivium("translate", tmp_path, "one")
    assert code == 1
    assert "checkpoint-3" in errors


def test_version() -> None:
    assert trivium("--version")[:2] == (0, f"{version('trivium')}\n")


def test_unknown_split_is_named(run: Path) -> None:
    code, _, errors = trivium("evaluate", run, "--split", "dev")
    assert code == 1
    assert "split is 'dev', but must be one of train, validation, test" in errors


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["translate"]])
def test_help_has_examples(command: list[str]) -> None:
    code, output, _ = trivium(*command, "--help")
    assert code == 0
    assert "trivium train numbers" in output or "Example" in output
