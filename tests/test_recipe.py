from pathlib import Path

import pytest

from trivium.recipe import Recipe, available_recipes, load_recipe
from trivium.tasks import TASKS, InputArguments

FILES = ["data.train=a", "data.validation=b", "data.test=c"]


@pytest.mark.parametrize("name", available_recipes())
def test_every_recipe_that_comes_along_is_whole(name: str) -> None:
    recipe = load_recipe(name, ["training.bf16=false", *(FILES if name != "numbers" else [])])
    assert recipe.training_arguments().output_dir == f"runs/{name}"
    assert recipe.model_config(vocab_size=600, bos_token_id=1, eos_token_id=2).vocab_size == 600


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_a_recipe(task: str) -> None:
    inputs = {
        "causal-lm": {"packing": True},
        "masked-lm": {"mlm_probability": 0.3},
        "completion": {"prompt": "{source}:"},
    }
    recipe = Recipe(task=task, inputs=InputArguments(**inputs.get(task, {})), training={"output_dir": "x"})
    assert recipe.kind is TASKS[task]


def test_what_does_not_change_parameters_goes_with_a_model_to_go_on_from() -> None:
    recipe = Recipe(init_from="somewhere", model={"dropout": 0.3}, training={"output_dir": "x"})
    assert recipe.model == {"dropout": 0.3}


def test_overrides_replace_single_fields() -> None:
    recipe = load_recipe("numbers", ["model.d_model=64", "training.learning_rate=5e-4", "metrics=[chrf]"])
    assert recipe.model_config(vocab_size=600).d_model == 64
    assert recipe.training_arguments().learning_rate == 5e-4
    assert recipe.training_arguments().warmup_steps == 300  # the rest stays
    assert recipe.metrics == ["chrf"]


def test_a_saved_recipe_comes_back(tmp_path: Path) -> None:
    recipe = load_recipe("numbers", ["model.dropout=0.2", "early_stopping_patience=3"])
    recipe.save(tmp_path)
    assert load_recipe(tmp_path) == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=3"], r"model says 'width', but can only say .*d_model"),
        (["training.epochs=3"], r"training says 'epochs', but can only say .*num_train_epochs"),
        (["generation.beams=3"], r"generation says 'beams', but can only say .*num_beams"),
        (["metrics=[bleu]"], r"metrics says 'bleu', but can only say .*sacrebleu"),
        (["data.nmae=numbers"], r"'nmae' not in 'DataArguments'"),
        (["tokenizer.vocab_size=many"], r"'many'"),
        (["model.dropout"], r"'model.dropout' is not an override"),
        (["training.output_dir=null"], r"training.output_dir is missing"),
        (["init_from=somewhere"], r"init_from brings its own configuration"),
        (["task=translate"], r"task says 'translate', but can only say .*Did you mean translation\?"),
        (["metrics=[accuracy]"], r"'accuracy' does not fit: choose from sacrebleu"),
        (["task=causal-lm", "metrics=[chrf]"], r"'chrf' does not fit: choose from perplexity, accuracy"),
        (["task=classification", "metrics=[perplexity]"], r"'perplexity' does not fit: choose from accuracy, f1, mse"),
        (["inputs.packing=true"], r"inputs\.packing is True, but it is for causal-lm; the task is translation"),
        (
            ["task=masked-lm", "metrics=null", "inputs.packing=true"],
            r"inputs\.packing is True, .* the task is masked-lm",
        ),
        (
            ["task=causal-lm", "metrics=null", "inputs.whole_word_mask=true"],
            r"whole_word_mask is True, but it is for masked-lm",
        ),
        (
            ["task=causal-lm", "metrics=null", "inputs.mlm_probability=0.3"],
            r"mlm_probability is 0\.3, but it is for masked-lm",
        ),
        (["inputs.prompt='{source}:'"], r"inputs\.prompt is {source}:, but it is for completion"),
        (["inputs.max_length=1"], r"inputs\.max_length is 1, but must be at least 2"),
        (["inputs.length=1"], r"'length' not in 'InputArguments'"),
        (["task=completion", "tokenizer.shared=false"], r"tokenizer\.shared is False, but it is for translation"),
        (
            ["task=classification", "metrics=null"],
            r"training\.predict_with_generate is True, but it is for translation",
        ),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)


def test_what_a_recipe_leaves_open_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"data\.train=\.\.\."):
        load_recipe("multi30k", FILES[1:])


def test_a_missing_recipe_lists_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*multi30k, multi30k-tiny, numbers"):
        load_recipe("nowhere")
    with pytest.raises(FileNotFoundError, match=r"There is no recipe"):
        load_recipe(tmp_path)  # a folder without one


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("data: [")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_recipe(path)


def test_python_users_are_checked_too() -> None:
    with pytest.raises(ValueError, match="training says 'epochs'"):
        Recipe(training={"output_dir": "x", "epochs": 3})
