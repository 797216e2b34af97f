"""Test `trivium tune`: ranges, pruning, resumption, what a search keeps, and its errors."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from small_recipes import SMALL
from typer.testing import CliRunner

from trivium.recipe import Recipe, load_recipe
from trivium.training import tuning
from trivium.training.ranges import Range, split_ranges
from trivium.training.tuning import tune
from trivium_cli import app

pytest.importorskip("optuna")

TINY = [*SMALL, "model.encoder_layers=1", "model.decoder_layers=1", "data.max_train_samples=40"]
TINY += [
    "training.max_steps=3",
    "training.eval_steps=1",
    "training.save_steps=1",
    "training.predict_with_generate=false",
]
TINY += ["training.load_best_model_at_end=false", "metrics=[]", "training.metric_for_best_model=null"]
RANGES = ["training.learning_rate=log(1e-4,1e-2)", "model.dropout=float(0,0.4)"]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace loading, training and plotting by functions that take no time."""
    base = load_recipe("numbers")

    def load(recipe: str, overrides: list[str]) -> Recipe:
        copied = deepcopy(base)
        for override in overrides:
            name, _, value = override.partition("=")
            section, _, field = name.partition(".")
            getattr(copied, section)[field] = yaml.safe_load(value)
        return copied

    monkeypatch.setattr(tuning, "_load", load)
    monkeypatch.setattr(tuning, "train", fake_train)
    monkeypatch.setattr("trivium.inspection.save_figure", lambda *args: None)


def fake_train(recipe: Any, callbacks: Any) -> Any:
    """Report three evaluations whose loss falls to the dropout, and return a finished trainer."""
    (report,) = callbacks
    for step in (1, 2, 3):
        state = SimpleNamespace(global_step=step, max_steps=3)
        report.on_evaluate(None, state, None, metrics={"eval_loss": recipe.model["dropout"] + 3 - step})
    args = SimpleNamespace(load_best_model_at_end=False)
    return SimpleNamespace(args=args, state=SimpleNamespace(best_global_step=None))


@pytest.mark.trains
def test_search_prunes_and_keeps_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tuning.make_sampler  # at random, and from this seed, it draws 1e-2, then 1e-9
    monkeypatch.setattr(tuning, "make_sampler", lambda seed, startup, number: sampler(2, 9, number))
    command = ["tune", "numbers", *TINY, "training.learning_rate=choice(1e-2,1e-9)", "--trials", "2", "--startup", "1"]
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "search")])
    assert result.exit_code == 0, result.output
    assert {"trials.csv", "trials.md", "trials.png", "study.db"} <= {
        path.name for path in (tmp_path / "search").iterdir()
    }
    rows = (tmp_path / "search/trials.csv").read_text().splitlines()[1:]
    assert "pruned" in "".join(rows)
    pruned = [row for row in rows if "pruned" in row]
    assert all("1e-9" in row and "worse than the median at evaluation 2" in row for row in pruned)
    weights = list((tmp_path / "search").rglob("*.safetensors"))
    assert weights
    assert len({path.relative_to(tmp_path / "search").parts[0] for path in weights}) == 1
    printed = result.stdout.splitlines()[-1]
    assert printed.startswith("trivium train numbers ")
    assert printed.endswith(" training.learning_rate=1e-2")


def test_interrupted_search_resumes(tmp_path: Path, fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tune("numbers", RANGES, tmp_path / "whole", trials=5, startup=2, seed=3)
    states = [row["state"] for row in whole.trials]
    assert states[:2] == ["complete", "complete"]
    assert "pruned" in states

    def interrupt(recipe: Any, callbacks: Any) -> Any:
        if recipe.training["output_dir"].endswith("0002"):
            raise KeyboardInterrupt
        return fake_train(recipe, callbacks)

    monkeypatch.setattr(tuning, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune("numbers", RANGES, tmp_path / "cut", trials=5, startup=2, seed=3)
    monkeypatch.setattr(tuning, "train", fake_train)
    resumed = tune("numbers", RANGES, tmp_path / "cut", trials=5, startup=2, seed=3)
    assert resumed.trials[2]["state"] == "fail"
    del resumed.trials[2]
    columns = ("state", "value", "model.dropout", "training.learning_rate")
    assert [[row[c] for c in columns] for row in resumed.trials] == [[row[c] for c in columns] for row in whole.trials]
    assert resumed.value == whole.value == min(row["value"] for row in whole.trials)


def test_changed_search_is_refused(tmp_path: Path, fakes: None) -> None:
    tune("numbers", RANGES, tmp_path, trials=1)
    with pytest.raises(ValueError, match=r"changed ranges: it was .*dropout=float.0.0,0.4"):
        tune("numbers", [RANGES[0], "model.dropout=float(0,0.5)"], tmp_path, trials=2)
    with pytest.raises(ValueError, match=r"changed recipe: it was 'not set', is now 'weight_decay: 0.5'"):
        tune("numbers", [*RANGES, "training.weight_decay=0.5"], tmp_path, trials=2)


@pytest.mark.slow
def test_values_that_do_not_fit_together_fail_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "train", fake_train)
    search = ["model.d_model=choice(64,120)", "model.num_attention_heads=choice(4,16)", *RANGES]
    found = tune("numbers", search, tmp_path, trials=8, startup=8)
    failed = [row for row in found.trials if row["state"] == "fail"]
    assert failed
    assert all((row["model.d_model"], row["model.num_attention_heads"]) == ("120", "16") for row in failed)
    assert "num_attention_heads" in failed[0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.dropout=0.1"], "no field to search"),
        (["model.dropout=uniform(0,1)"], r"model.dropout is 'uniform\(0,1\)'.*float\(LOW,HIGH\), log"),
        (["model.dropout=float(0.4,0)"], "lower one first"),
        (["model.dropout=log(0,1)"], "positive"),
        (["model.dropout=float(0)"], "two numbers"),
        (["model.d_model=int(1.5,2)"], "two integers"),
        (["model.d_model=choice(64)"], "at least two different values"),
        (["model.dropout=float(0,1)", "model.dropout=0.1"], "model.dropout is given twice"),
        (["training.output_dir=choice(a,b)"], "training.output_dir is set for each trial"),
        (["model.dropuot=float(0,0.4)"], r"model.dropuot is unknown.*dropout"),
        (["model.dropout=float(0,1.5)"], "dropout"),
        (["training.learning_rate=choice(1e-3,fast)"], "training.learning_rate is 'fast'"),
        (["model.dropout=float(0,0.4)", "training.eval_strategy=no"], "training.eval_strategy is no"),
    ],
)
def test_bad_searches_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tune("numbers", arguments, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no search"):
        tune("numbers", RANGES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_choices_may_be_lists() -> None:
    ranges, overrides = split_ranges(["metrics=choice([bleu,chrf],[bleu])", "data.train=a.txt"])
    assert ranges == [Range("metrics", "choice", ("[bleu,chrf]", "[bleu]"))]
    assert overrides == ["data.train=a.txt"]
