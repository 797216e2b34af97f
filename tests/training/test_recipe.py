import re
from pathlib import Path

import pytest
import torch

from trivium.hub.public import load_card_arguments
from trivium.recipe import Recipe, available_recipes, load_recipe
from trivium.recipe_sections import CardArguments
from trivium.tasks import TASKS, InputArguments

FILES = ["data.train=a", "data.validation=b", "data.test=c"]


@pytest.mark.parametrize("name", available_recipes())
def test_bundled_recipes_are_complete(name: str) -> None:
    recipe = load_recipe(name, ["training.bf16=false", *(FILES if name != "numbers" else [])])
    assert recipe.training_arguments().output_dir == f"runs/{name}"
    assert recipe.model_config(vocab_size=600, bos_token_id=1, eos_token_id=2).vocab_size == 600


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe(task: str) -> None:
    inputs = {
        "causal-lm": {"packing": True},
        "masked-lm": {"mlm_probability": 0.3},
        "completion": {"prompt": "{source}:"},
        "question-answering": {"stride": 8},
        "denoising": {"noise": "spans"},
    }
    recipe = Recipe(task=task, inputs=InputArguments(**inputs.get(task, {})), training={"output_dir": "x"})
    assert recipe.kind is TASKS[task]


def test_non_parameter_fields_are_allowed_with_init_from() -> None:
    recipe = Recipe(init_from="somewhere", model={"dropout": 0.3}, training={"output_dir": "x"})
    assert recipe.model == {"dropout": 0.3}


def test_overrides_replace_single_fields() -> None:
    recipe = load_recipe("numbers", ["model.d_model=64", "training.learning_rate=5e-4", "metrics=[chrf]"])
    assert recipe.model_config(vocab_size=600).d_model == 64
    assert recipe.training_arguments().learning_rate == 5e-4
    assert recipe.training_arguments().warmup_steps == 300  # All other fields are unchanged.
    unset = load_recipe("numbers", ["training.dataloader_pin_memory=null"]).training_arguments()
    assert unset.dataloader_pin_memory == torch.accelerator.is_available()
    assert recipe.metrics == ["chrf"]


def test_base_of_rotary_positions_may_be_set_alone() -> None:
    recipe = load_recipe("numbers", ["model.position_embedding_type=rotary", "model.rope_theta=5000"])
    assert recipe.model_config(vocab_size=600).rope_parameters == {"rope_type": "default", "rope_theta": 5000}


def test_saved_recipe_round_trips(tmp_path: Path) -> None:
    recipe = load_recipe("numbers", ["model.dropout=0.2", "early_stopping_patience=3"])
    recipe.save(tmp_path)
    assert load_recipe(tmp_path) == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=3"], r"model\.width is unknown.*d_model"),
        (["training.epochs=3"], r"training\.epochs is unknown.*num_train_epochs"),
        (["generation.beams=3"], r"generation\.beams is unknown.*num_beams"),
        (["metrics=[bleu]"], r"metrics is 'bleu', but must be one of .*sacrebleu"),
        (["data.nmae=numbers"], r"data\.nmae is unknown\. Did you mean name"),
        (["tokenizer.vocab_size=many"], r"'many'"),
        (["model.dropout"], r"'model.dropout' is not an override"),
        (["training.output_dir=null"], r"training.output_dir is missing"),
        (["init_from=somewhere"], r"init_from is 'somewhere' and model\.preset is"),
        (["task=translate"], r"task is 'translate', but must be one of .*Did you mean translation\?"),
        (["metrics=[accuracy]"], r"'accuracy' does not fit the task. Choose from sacrebleu"),
        (["task=causal-lm", "metrics=[chrf]"], r"'chrf' does not fit the task. Choose from perplexity, accuracy"),
        (
            ["task=classification", "metrics=[perplexity]"],
            r"'perplexity' does not fit .* accuracy, f1, mse",
        ),
        (["inputs.packing=true"], r"inputs\.packing is True, but is only for causal-lm; the task is translation"),
        (
            ["task=masked-lm", "metrics=null", "inputs.packing=true"],
            r"inputs\.packing is True, .* the task is masked-lm",
        ),
        (
            ["task=causal-lm", "metrics=null", "inputs.whole_word_mask=true"],
            r"whole_word_mask is True, but is only for masked-lm",
        ),
        (
            ["task=causal-lm", "metrics=null", "inputs.mlm_probability=0.3"],
            r"mlm_probability is 0\.3, but is only for masked-lm",
        ),
        (["inputs.prompt='{source}:'"], r"inputs\.prompt is {source}:, but is only for completion"),
        (["inputs.max_length=1"], r"inputs\.max_length is 1, but must be at least 2"),
        (["inputs.length=1"], r"inputs\.length is unknown.*max_length"),
        (["task=completion", "tokenizer.shared=false"], r"tokenizer\.shared is False, but .* only for translation"),
        (
            ["task=classification", "metrics=null"],
            r"training\.predict_with_generate is True, but is only for translation",
        ),
    ],
)
def test_invalid_fields_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.max_steps=abc"], r"training\.max_steps is 'abc', but must be an integer"),
        (["training.max_steps=1.5"], r"training\.max_steps is 1\.5, but must be an integer"),
        (["training.max_steps=true"], r"training\.max_steps is True"),
        (["training.learning_rate=fast"], r"training\.learning_rate is 'fast', but must be a number"),
        (["training.learning_rate=.nan"], r"training\.learning_rate is nan"),
        (["training.bf16=maybe"], r"training\.bf16 is 'maybe', but must be true or false"),
        (["training.output_dir=2024"], r"training\.output_dir is 2024, but must be a string"),
        (["training.report_to=3"], r"training\.report_to is 3, but must be a string or a list"),
        (["training.lr_scheduler_kwargs=3"], r"training\.lr_scheduler_kwargs is 3, but must be a mapping"),
        (
            ["training.eval_strategy=step"],
            r"eval_strategy is 'step', but must be one of no, steps, epoch\. Did .* steps",
        ),
        (["training.optim=adam"], r"training\.optim is 'adam', but must be one of .*adamw_torch"),
        (["generation.num_beams=abc"], r"generation\.num_beams is 'abc', but must be an integer"),
        (["generation.length_penalty=.nan"], r"generation\.length_penalty is nan, but must be a number"),
        (["data=5"], r"data is 5, but must be a mapping"),
        (["data=[5]"], r"data is \[5\], but must be a mapping"),
        (["model=5"], r"model is 5, but must be a mapping"),
        (["training=null"], r"training is None, but must be a mapping"),
        (["data.directions=en-de"], r"data\.directions: The value must be a list, such as data\.directions="),
        (["metrics=chrf"], r"metrics: The value must be a list"),
        (["traning.max_steps=5"], r"traning is unknown\. Did you mean training\b"),
        (["=5"], r"is not an override"),
        (["training.max_steps=["], r"numbers\.yaml"),
    ],
)
def test_values_of_wrong_type_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", overrides)


def test_folder_may_be_a_path(tmp_path: Path) -> None:
    recipe = Recipe(training={"output_dir": tmp_path})
    recipe.save(tmp_path)
    assert load_recipe(tmp_path) == recipe


def test_unknown_field_is_reported_before_missing_ones() -> None:
    with pytest.raises(ValueError, match=r"data\.trian.*unknown\. Did you mean train"):
        load_recipe("multi30k", ["data.trian=x"])


def test_no_is_a_string_not_a_boolean(tmp_path: Path) -> None:
    """YAML 1.1 reads `no` as false."""
    strategies = [f"training.{name}_strategy=no" for name in ("eval", "save", "logging")]
    languages = ["data.source=no", "card.languages=[no, de]", "training.load_best_model_at_end=false"]
    recipe = load_recipe("numbers", [*strategies, *languages])
    args = recipe.training_arguments()
    assert [args.eval_strategy, args.save_strategy, args.logging_strategy] == ["no"] * 3
    assert (recipe.data.source, recipe.card.languages) == ("no", ["no", "de"])
    assert recipe.training["load_best_model_at_end"] is False
    recipe.save(tmp_path)
    assert load_recipe(tmp_path) == recipe


# --- Interpolation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return "${oc.env:HF_TOKEN}"


@pytest.mark.parametrize(
    ("yaml", "field"),
    [
        ("card: {summary: '%s'}", "card.summary"),
        ("card: {examples: [a, 'Token: %s']}", "card.examples[1]"),
        ("training: {output_dir: x, run_name: '%s'}", "training.run_name"),
        ("training: {output_dir: x, lr_scheduler_kwargs: {a: [{b: '%s'}]}}", "training.lr_scheduler_kwargs.a[0].b"),
        ("training: {output_dir: x, lr_scheduler_kwargs: {'%s': 1}}", "training.lr_scheduler_kwargs"),
        ("'%s': 1", "the recipe"),
        ("model: '%s'", "model"),
        ("card: {summary: '\\%s'}", "card.summary"),
        ("card: {summary: '${card.title}', title: x}", "card.summary"),
        ("card: {summary: 'a ${ b'}", "card.summary"),
        (r'card: {summary: "\x24\u007boc.env:HF_TOKEN}"}', "card.summary"),
        ("x: &x ['%s']\ncard: {examples: *x}", "x[0]"),
    ],
)
def test_interpolation_is_refused_in_files(yaml: str, field: str, secret: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.replace("%s", secret))
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=rf"{re.escape(field)}.*interpolation") as caught:
            load_recipe(source)
        assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("card.summary=%s", "card.summary"),
        ("card.examples=['%s']", "card.examples[0]"),
        ("card.${x}=1", "card"),
        ("card={summary: '%s'}", "card.summary"),
        ("card.summary=\\%s", "card.summary"),
        ("card.summary=${", "card.summary"),
    ],
)
def test_interpolation_is_refused_in_overrides(override: str, field: str, secret: str) -> None:
    override = override.replace("%s", secret)
    for load in (lambda: load_recipe("numbers", [override]), lambda: load_card_arguments([override])):
        with pytest.raises(ValueError, match=rf"{re.escape(field)}.*interpolation") as caught:
            load()
        assert "hf_secret" not in str(caught.value)


def test_interpolation_is_refused_in_python(secret: str) -> None:
    """A recipe with this value could be saved, but not loaded."""
    with pytest.raises(ValueError, match=r"card\.summary.*interpolation"):
        Recipe(training={"output_dir": "x"}, card=CardArguments(summary=secret))


def test_literal_dollars_and_braces_are_kept(tmp_path: Path) -> None:
    text = r"$5 {a} $ {b} \$ &#36;{c} $$x$$ \\"
    recipe = Recipe(training={"output_dir": "x"}, card=CardArguments(summary=text, examples=[text]))
    recipe.save(tmp_path)
    assert load_recipe(tmp_path) == recipe


def test_missing_fields_are_named() -> None:
    with pytest.raises(ValueError, match=r"data\.train=\.\.\."):
        load_recipe("multi30k", FILES[1:])


def test_missing_recipe_error_lists_bundled_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*multi30k, .*multi30k-tiny, numbers"):
        load_recipe("nowhere")
    with pytest.raises(FileNotFoundError, match=r"There.*recipe"):
        load_recipe(tmp_path)  # The folder has no recipe.


@pytest.mark.parametrize(
    "content",
    [b"data: [", b"- 5", b"abc", b"5", b"a: &a [*a]", b"card: {title: \xfc}", b"a: !!set {x}", b"a: " + b"[" * 2000],
)
def test_invalid_recipe_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.yaml|abc is unknown"):
        load_recipe(path)


def test_python_api_validates_recipes() -> None:
    with pytest.raises(ValueError, match=r"training\.epochs.*unknown"):
        Recipe(training={"output_dir": "x", "epochs": 3})
