"""Test the model card: all of its statements come from recorded facts."""

import ast
import json
import re
import shlex
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from cards import card_of, code_of, parsed, save_small
from huggingface_hub import InferenceClient, ModelCard
from model_classes import LAYERS as CLASSES
from paths import ROOT
from transformers import PreTrainedModel, TrainerState
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from typer.testing import CliRunner

from trivium import (
    TriviumForConditionalGeneration,
    TriviumForSequenceClassification,
    TriviumTokenizer,
)
from trivium.hub.card import MARK, has_own_card, render_card
from trivium.metrics import METRICS
from trivium.recipe import available_recipes, load_recipe
from trivium.recipe_sections import CardArguments, LearningArguments
from trivium_cli import app

RUN = {
    "seconds": 3725.4,
    "hardware": "AMD EPYC, 2 cores",
    "processes": 1,
    "examples": 29000,
    "versions": {"torch": "2.13.0"},
    "seed": 42,
    "data": "rows:0123456789abcdef",
}
WORK = {"tokens": 3_000_000, "padded": 4_000_000, "flops": 5e12, "seconds": 100.0}
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
EVALUATION: dict[str, Any] = {
    "scores": {
        "sacrebleu": {"score": 38.0747, "signature": SIGNATURE},
        "exact_match": {"score": 0.12345},
        "perplexity": {"score": 5.5226, "loss": 1.7088},
    },
    "data": "corpus/test",
    "rows": 1234,
    "generation": {"do_sample": False, "num_beams": 5, "length_penalty": 0.6},
    "date": "2026-11-22",
    "versions": {"trivium": "0.1.0", "torch": "2.13.0"},
}


@pytest.fixture
def trained(card_tokenizer: TriviumTokenizer, tmp_path: Path) -> Path:
    """Return the folder of a run that was trained and evaluated."""
    folder = tmp_path / "run"
    model = save_small(TriviumForConditionalGeneration, card_tokenizer, folder, dropout=0.3, label_smoothing=0.2)
    model.generation_config.max_new_tokens = 4
    model.save_pretrained(folder)
    recipe = load_recipe("multi30k", [f"data.{part}=/home/me/secret/corpus/{part}" for part in ("train", "test")] + [
        "data.validation=null", "training.gradient_accumulation_steps=2", "card.summary=It *translates*.",
        "card.intended_use=Captions.", "card.limitations=Nothing but captions.", "card.title=Captions",
        "card.license=cc-by-4.0", "card.examples=[two dogs, the cat]",
    ])  # fmt: skip
    recipe.save(folder)
    history = [{"step": step, "loss": 9 - step / 1000, "epoch": 1.0} for step in range(100, 6600, 100)]
    history += [{"step": step, "eval_loss": 8 - step / 1000, "epoch": 1.0} for step in range(500, 7000, 500)]
    state = TrainerState(global_step=6500, epoch=14.317, log_history=sorted(history, key=lambda entry: entry["step"]))
    state.stateful_callbacks = {
        "RunFacts": {"args": {}, "attributes": RUN},
        "Throughput": {"args": {}, "attributes": {"work": WORK}},
    }
    state.save_to_json(str(folder / "trainer_state.json"))
    (folder / "evaluation_test.json").write_text(json.dumps(EVALUATION))
    return folder


@pytest.fixture
def run(trained: Path, undrawn: None) -> Path:
    """Return the folder of a run, whose card is rendered without drawing its pictures."""
    return trained


def headings_of(text: str) -> list[str]:
    tokens = parsed(text)
    return [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]


def table_of(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables, keyed by their first cell."""
    rows: list[list[str]] = []
    for token in parsed(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level >= 4:
            rows[-1].append(token.content)
    return {row[0]: row[1:] for row in rows if row}


# --- Facts -----------------------------------------------------------------------------------------------------------


def test_every_statement_matches_its_source(run: Path, card_tokenizer: TriviumTokenizer) -> None:
    card = card_of(run)
    table, text = table_of(card.text), " ".join(card.text.split())
    assert headings_of(card.text)[0] == "Captions"
    assert "It *translates*." in text
    assert "`translation`, from `en` to `de`" in text
    assert table["layers"] == ["2 encoder + 3 decoder"]
    assert table["hidden size, `d_model`"] == ["24"]
    assert table["attention"] == ["4 heads"]
    assert table["feed-forward network"] == ["width 40, relu"]
    assert table["positions"] == ["sinusoidal, designed for up to 64 tokens"]
    assert table["normalization"] == ["LayerNorm after each sub-layer"]
    assert table["vocabulary"] == [f"{len(card_tokenizer)} tokens"]
    model = TriviumForConditionalGeneration.from_pretrained(run)
    assert table["parameters"] == [f"{model.num_parameters():,}"]

    assert table["sacreBLEU"] == ["38.07", "test", f"`{SIGNATURE}`"]
    assert table["exact match"][:2] == ["12.3%", "test"]
    assert table["perplexity per token (lower is better)"][:2] == ["5.52", "test"]
    assert (
        "test: 1,234 rows of `corpus/test`, generated with `do_sample=False`, `num_beams=5`, `length_penalty=0.6`; "
        "measured on 2026-11-22 with trivium 0.1.0, torch 2.13.0" in text
    )
    assert table["task"] == ["translation"]
    assert table["data"] == ["`corpus/train`, from `en` to `de`; 29,000 examples; fingerprint `rows:0123456789ab`"]
    batch = "rows of similar length, up to 2,048 tokens, per device, 2 gradient accumulation steps, 1 process"
    assert table["batch"] == [batch]
    assert table["learning rate"] == ["0.003, schedule `linear`, 800 warm-up steps"]
    assert "β₂ 0.98, ε 1e-09, weight decay 0.0" in table["optimizer"][0]
    assert table["regularization"] == ["dropout 0.3, label smoothing 0.2"]
    assert table["steps"] == ["6,500 (14.3 epochs)"]
    curve = {step: losses for step, losses in table.items() if re.fullmatch(r"[\d,]+", step)}
    assert 5 <= len(curve) <= 10
    for step, losses in curve.items():
        number = int(step.replace(",", ""))
        assert losses == [f"{9 - number / 1000:.3f}", f"{8 - number / 1000:.3f}"]
    assert "6,500" in curve
    assert table["training time (h:mm:ss)"] == ["1:02:05"]
    assert table["tokens"] == ["3,000,000, not counting padding (25.0% of all positions)"]
    assert table["seed"] == ["42"]
    assert table["throughput"] == ["30,000 tokens/s, 0.05 TFLOP/s"]
    assert table["hardware"] == ["AMD EPYC, 2 cores"]
    assert table["versions"] == ["torch 2.13.0"]
    assert "Captions." in text
    assert "Nothing but captions." in text
    assert "attention.png" in text


def test_learning_methods_are_stated(run: Path) -> None:
    recipe = load_recipe(run)
    recipe.learning = LearningArguments(r_drop=5.0, muon_learning_rate=0.004)
    recipe.save(run)
    table = table_of(card_of(run).text)
    assert "Muon" in table["optimizer"][0]
    assert "0.004" in table["optimizer"][0]
    assert table["regularization"] == ["dropout 0.3, label smoothing 0.2, R-Drop 5.0"]


def test_recipe_on_card_matches_run(run: Path, tmp_path: Path) -> None:
    text = card_of(run).text
    (tmp_path / "again.yaml").write_text(code_of(text, "yaml")[0])
    again, recipe = load_recipe(tmp_path / "again.yaml"), load_recipe(run)
    assert (again.data.train, again.data.test) == ("corpus/train", "corpus/test")
    again.data, again.card = recipe.data, recipe.card
    assert again == recipe
    assert "secret" not in text, "local paths must not be published"


def test_hub_metadata(run: Path) -> None:
    card = card_of(run, "card.datasets=[someone/captions]")
    assert card.data.to_dict() == ModelCard(str(card)).data.to_dict()
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "translation", "cc-by-4.0")
    assert (data.language, data.tags) == (["en", "de"], ["trivium", "encoder-decoder"])
    assert data.datasets == ["someone/captions"]
    assert data.metrics == ["sacrebleu", "exact_match", "perplexity"]
    assert data.widget == [{"text": text} for text in load_recipe(run).card.examples]
    assert data.model_name == "model"
    assert data.eval_results is not None
    scores = {name: result["score"] for name, result in EVALUATION["scores"].items()}
    assert {result.metric_type: result.metric_value for result in data.eval_results} == scores
    for result in data.eval_results:
        assert (result.task_type, result.dataset_split) == ("translation", "test")
        assert (result.dataset_name, result.dataset_type) == ("corpus/test", "someone/captions")


def test_scores_on_other_data_keep_their_own_name(run: Path) -> None:
    (run / "evaluation_test.json").write_text(json.dumps({**EVALUATION, "data": "news/test"}))
    results = card_of(run, "card.datasets=[someone/captions]").data.eval_results
    assert {(result.dataset_name, result.dataset_type) for result in results or []} == {("news/test", "news-test")}


def test_diverged_model_has_a_card(run: Path) -> None:
    scores = {"perplexity": {"score": float("inf")}}
    (run / "evaluation_test.json").write_text(json.dumps({**EVALUATION, "scores": scores}))
    card = card_of(run)
    assert table_of(card.text)["perplexity per token (lower is better)"][0] == "inf"
    assert card.data.eval_results is None


def test_every_metric_has_a_hub_name() -> None:
    from trivium.hub.card_text import METRICS as NAMES

    assert set(NAMES) == set(METRICS)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model_class", CLASSES)
def test_parameter_count_matches_model(
    model_class: type[PreTrainedModel], tied: bool, card_tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    model = save_small(model_class, card_tokenizer, tmp_path, tie_word_embeddings=tied)
    assert table_of(card_of(tmp_path).text)["parameters"] == [f"{model.num_parameters():,}"]
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert table_of(card_of(tmp_path).text)["parameters"] == [f"{model.num_parameters():,}"]


def test_model_shape_is_described(card_tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "num_key_value_heads": 2, "gated_ffn": True, "activation_function": "silu", "norm_type": "rmsnorm",
        "norm_position": "pre", "position_embedding_type": "learned", "decoder_vocab_size": 99, "sliding_window": 1024,
    }  # fmt: skip
    save_small(TriviumForConditionalGeneration, card_tokenizer, tmp_path, **options)
    table = table_of(card_of(tmp_path).text)
    assert table["attention"] == ["4 heads, 2 key-value heads, sliding window of 1,024 tokens"]
    assert table["feed-forward network"] == ["gated, width 40, silu"]
    assert table["normalization"] == ["RMSNorm before each sub-layer"]
    assert table["positions"] == ["learned, at most 64 tokens"]
    assert table["vocabulary"] == [f"{len(card_tokenizer)} source tokens, 99 target tokens"]


def test_labels_are_listed(card_tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    save_small(TriviumForSequenceClassification, card_tokenizer, tmp_path, id2label={0: "air", 1: "ground"})
    assert "2 labels: `air`, `ground`." in card_of(tmp_path).text


def test_hub_model_is_named_as_base_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(run)
    recipe.init_from, recipe.model = "runs/words", {"dropout": 0.3}
    recipe.save(run)
    card = card_of(run)
    assert card.data.base_model is None
    assert table_of(card.text)["initialized from"] == ["`runs/words`"]
    cache = tmp_path / "models--runs--words"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    (cache / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (cache / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    card = card_of(run)
    assert card.data.base_model == "runs/words"
    assert table_of(card.text)["initialized from"] == ["[runs/words](https://huggingface.co/runs/words)"]


# --- Missing information ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing", ["recipe.yaml", "trainer_state.json", "evaluation_test.json", "generation_config.json"]
)
def test_no_empty_sections(run: Path, missing: str) -> None:
    (run / missing).unlink()
    assert_is_tidy(card_of(run).text)


@pytest.mark.parametrize("model_class", CLASSES)
def test_folder_without_metadata_has_a_short_card(
    model_class: type[PreTrainedModel], card_tokenizer: TriviumTokenizer, tmp_path: Path
) -> None:
    save_small(model_class, card_tokenizer, tmp_path)
    files = render_card(tmp_path, "someone/model")
    assert list(files) == ["README.md"]
    card = ModelCard(files["README.md"].decode())
    assert headings_of(card.text) == ["model", "How to use", "Intended use and limitations", "Citation"]
    assert_is_tidy(card.text)
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert card.data.pipeline_tag is not None
    assert hasattr(InferenceClient, card.data.pipeline_tag.replace("-", "_")), "what the Hub knows"


def assert_is_tidy(text: str) -> None:
    tokens = parsed(text)
    for i, token in enumerate(tokens):
        if token.type == "heading_close":
            assert i + 1 < len(tokens)
            assert tokens[i + 1].type != "heading_open", tokens[i - 1].content
    words = text.lower()
    assert not re.search(r"\bnone\b|unknown|\bnan\b|{{|}}|{%|undefined|<!--\s*-->|\n\n\n", words)
    assert words.count("<!--") == 1
    assert words.count("<details>") == words.count("</details>") <= 1


def test_repository_name_defaults_to_folder(bare: Path) -> None:
    with chdir(bare):
        text = card_of(Path(), repo_id=None).text
    assert headings_of(text)[0] == "bare"
    assert 'model="bare"' in text


# --- User-provided text ----------------------------------------------------------------------------------------------

HOSTILE = "a | b {{ repo }} {% raw %} <script>alert(1)</script>\n# c: [d] --- `e`\n---\n'\" \\ 漢 <!-- -->"


def test_special_characters_in_title_are_escaped(trained: Path) -> None:
    recipe = load_recipe(trained)
    recipe.card = CardArguments(title=HOSTILE, examples=[HOSTILE, "```\n~~~"])
    recipe.data.train, recipe.data.source = f"/x/{HOSTILE}", HOSTILE
    recipe.save(trained)
    report = {**EVALUATION, "data": HOSTILE, "versions": {"torch": HOSTILE}}
    report["scores"] = {"sacrebleu": {"score": 1.0, "signature": HOSTILE}}
    (trained / "evaluation_test.json").write_text(json.dumps(report))
    card = card_of(trained)
    assert card.data.widget == [{"text": HOSTILE}, {"text": "```\n~~~"}]
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].dataset_name == HOSTILE
    headings = headings_of(card.text)
    assert headings[0] == " ".join(HOSTILE.replace("<", "&lt;").replace(">", "&gt;").split())
    assert headings[1:] == [
        "How to use", "Results", "Attention", "Training", "Training time, hardware and software",
        "Intended use and limitations", "Citation",
    ]  # fmt: skip
    tokens = parsed(card.text)
    rows = [len(re.findall(r"t[dh]_open", " ".join(t.type for t in tokens[i : i + 20]).split("tr_close")[0]))
            for i, token in enumerate(tokens) if token.type == "tr_open"]  # fmt: skip
    assert set(rows) <= {2, 3, 4}
    html = [t.content for t in tokens if t.type == "html_block"]
    html += [c.content for t in tokens for c in t.children or [] if c.type == "html_inline"]
    assert not [content for content in html if "script" in content]
    for code in code_of(card.text, "python"):
        ast.parse(code)
    command = code_of(card.text, "bash")[0].splitlines()[1]
    assert shlex.split(command) == ["trivium", "translate", "model", " ".join(HOSTILE.split())]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("card.license=Apache 2", "card.license is 'Apache 2'"),
        ("card.languages=[English]", "card.languages has 'English'"),
        ("card.datasets=['a b']", "card.datasets has 'a b'"),
        ("card.examples=['']", "an example must not be blank"),
        ("card.licence=mit", "licence"),
        ("model.d_model=3", "overrides has 'model.d_model=3', but must have card.field=value"),
        ("card", "overrides has 'card', but must have card.field=value"),
    ],
)
@pytest.mark.parametrize("folder", ["bare", "run"])
def test_invalid_card_fields_are_named(
    folder: str, override: str, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render_card(request.getfixturevalue(folder), None, [override])


def test_folders_without_a_card_are_refused(bare: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"saved model.*config\.json"):
        render_card(tmp_path)
    (run / "evaluation_test.json").write_text(json.dumps(EVALUATION["scores"]))
    with pytest.raises(ValueError, match=r"evaluation_test\.json.*older version"):
        render_card(run)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "architectures": ["BartModel"]}))
    with pytest.raises(ValueError, match=r"'BartModel'.*class.*Trivium"):
        render_card(bare)


@pytest.mark.parametrize("name", available_recipes())
def test_bundled_recipes_have_a_card(name: str) -> None:
    files = ["data.train=a", "data.validation=b", "data.test=c"] if name != "numbers" else []
    card = load_recipe(name, files).card
    assert card.examples
    assert set(card.languages) <= set(LANGUAGES)
    assert card.license == ("apache-2.0" if name == "numbers" else None), "whose data it is, says the license"
    if name.endswith("mlm"):
        assert all("<mask>" in text for text in card.examples)


# --- The template ----------------------------------------------------------------------------------------------------


def test_template_is_valid_markdown() -> None:
    text = (ROOT / "hub_card.md").read_text()
    assert headings_of(text) == [
        "{{ title }}", "How to use", "Results", "Attention", "Training",
        "Training time, hardware and software", "Intended use and limitations", "Citation",
    ]  # fmt: skip
    shown = [token for token in parsed(text) if token.type != "html_block"]
    assert not [token.content for token in shown if "{%" in token.content or "{#" in token.content]
    names = set(re.findall(r"{{ (\w+) }}", text))
    assert all(re.fullmatch(r"[a-z_]{5,}", name) for name in names)
    assert len(parsed(text)) > 60, "tables and lists are what they are on the card"


# --- On the command line ---------------------------------------------------------------------------------------------


def card(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["card", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_command_writes_the_rendered_card(trained: Path) -> None:
    before = set(trained.iterdir())
    code, output, errors = card(trained, "card.license=mit", "--repo-id", "someone/model")
    assert code == 0, errors
    assert {path.name for path in set(trained.iterdir()) - before} == {"README.md", "attention.png", "curves.png"}
    expected = render_card(trained, "someone/model", ["card.license=mit"])
    assert {name: (trained / name).read_bytes() for name in expected} == expected
    assert ModelCard.load(trained / "README.md").data.license == "mit"
    assert expected["attention.png"].startswith(b"\x89PNG")
    assert f"trivium push {trained} someone/model" in output
    assert MARK in output
    assert card(trained)[0] == 0, "its own card may be replaced"


def test_text_of_the_user_is_kept(run: Path) -> None:
    readme = run / "README.md"
    assert not has_own_card(run)
    assert card(run)[0] == 0
    assert not has_own_card(run)
    for own in ("# Mine\n", readme.read_text().replace(MARK, "")):
        readme.write_text(own)
        assert has_own_card(run)
        code, _, errors = card(run)
        assert code == 1
        assert "README.md was not generated by Trivium. Add --overwrite to replace it." in errors
        assert readme.read_text() == own
    assert card(run, "--overwrite")[0] == 0
    assert MARK in readme.read_text()


def test_card_of_plain_trainer_is_not_a_user_card(bare: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = TriviumForConditionalGeneration.from_pretrained(bare)
    Trainer(model, TrainingArguments(str(bare), report_to="none")).create_model_card()
    assert (bare / "README.md").is_file()
    assert not has_own_card(bare)


def test_errors_are_one_line_and_write_nothing(run: Path, tmp_path: Path) -> None:
    before = set(run.iterdir())
    code, _, errors = card(run, "card.languages=[English]")
    assert (code, errors.count("\n")) == (1, 1)
    assert "card.languages has 'English'" in errors
    assert card(tmp_path)[0] == 1
    assert set(run.iterdir()) == before
