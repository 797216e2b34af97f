"""Test commands that process texts: their outputs, and their errors for unsuitable models."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import shake, tiny_config
from transformers import PreTrainedModel
from typer.testing import CliRunner

from trivium import (
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumTokenizer,
)
from trivium.tokenization import train_tokenizer
from trivium_cli import app, text_files, texts

pytestmark = pytest.mark.usefixtures("seeded")

CAT, DOGS, CLOUDS, BIRDS = TEXTS = [
    "the cat sat on the mat.",
    "two dogs ran\nacross the road.",
    "über den Wolken 🙂 muß die Freiheit grenzenlos sein",
    "birds fly south in winter.",
]
POSITIONS = 24  # fewer than the default maximum length of `trivium generate`


def trivium(*arguments: str | Path, stdin: str | None = None) -> tuple[int, str, str]:
    """Run a command; return its exit code, standard output and standard error, without colors."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, re.sub(r"\x1b\[[\d;]*m", "", result.stderr)


def printed(*arguments: str | Path, stdin: str | None = None) -> str:
    code, output, errors = trivium(*arguments, stdin=stdin)
    assert code == 0, errors
    return output


def rows_of(output: str) -> list[list[tuple[str, float]]]:
    """Parse lines of names and scores."""
    cells = [line.split("\t") if line else [] for line in output.removesuffix("\n").split("\n")]
    return [[(row[i], float(row[i + 1])) for i in range(0, len(row), 2)] for row in cells]


# --- Models that memorized four texts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 2, vocab_size=400)


def learn(model: PreTrainedModel, batch: dict[str, torch.Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save(model: PreTrainedModel, tokenizer: TriviumTokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def translator(folders: Path, tokenizer: TriviumTokenizer) -> Path:
    model = TriviumForConditionalGeneration(tiny_config(vocab_size=len(tokenizer)))
    batch = tokenizer(TEXTS, text_target=TEXTS, padding=True, return_tensors="pt")
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == tokenizer.pad_token_id, -100)
    learn(model, dict(batch), steps=100)
    return save(model, tokenizer, folders / "translator")


@pytest.fixture(scope="module")
def language_model(folders: Path, tokenizer: TriviumTokenizer) -> Path:
    batch = tokenizer(["<s>" + text for text in TEXTS], padding=True, split_special_tokens=False, return_tensors="pt")
    config = tiny_config(
        vocab_size=len(tokenizer),
        encoder_layers=0,
        position_embedding_type="learned",
        max_position_embeddings=POSITIONS,
    )
    model = TriviumForCausalLM(config)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    learn(model, {**batch, "labels": labels}, steps=120)
    folder = save(model, tokenizer, folders / "language_model")
    open_ended = TriviumTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=False)
    return save(model, open_ended, folder)


@pytest.fixture(scope="module")
def masked_model(folders: Path, tokenizer: TriviumTokenizer) -> Path:
    model = TriviumForMaskedLM(tiny_config(vocab_size=len(tokenizer), decoder_layers=0))
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask_id = tokenizer.mask_token_id
    rows = [(i, j) for i in range(len(TEXTS)) for j in range(int(batch["attention_mask"][i].sum()) - 1)]
    inputs = {name: torch.stack([values[i] for i, _ in rows]) for name, values in batch.items()}
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, (_, j) in enumerate(rows):  # Mask each token of the text in turn.
        labels[row, j], inputs["input_ids"][row, j] = inputs["input_ids"][row, j].item(), mask_id
    learn(model, {**inputs, "labels": labels}, steps=100)
    return save(model, tokenizer, folders / "masked_model")


def save_classifier(folder: Path, tokenizer: TriviumTokenizer, labels: torch.Tensor, **config: object) -> Path:
    model = TriviumForSequenceClassification(
        tiny_config(vocab_size=len(tokenizer), decoder_layers=0, max_position_embeddings=POSITIONS, **config)
    )
    learn(model, {**tokenizer(TEXTS, padding=True, return_tensors="pt"), "labels": labels}, steps=60)
    return save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def classifier(folders: Path, tokenizer: TriviumTokenizer) -> Path:
    names = {0: "ground", 1: "air", 2: "sea\tor\\lake"}
    return save_classifier(
        folders / "classifier",
        tokenizer,
        torch.tensor([0, 0, 1, 1]),
        id2label=names,
        label2id={name: i for i, name in names.items()},
        problem_type="single_label_classification",
        position_embedding_type="learned",
    )


@pytest.fixture(scope="module")
def tagger(folders: Path, tokenizer: TriviumTokenizer) -> Path:
    labels = {"id2label": {0: "O", 1: "B-animal"}, "label2id": {"O": 0, "B-animal": 1}}
    model = TriviumForTokenClassification(tiny_config(vocab_size=len(tokenizer), decoder_layers=0, **labels))
    return save(model, tokenizer, folders / "tagger")


# --- translate -------------------------------------------------------------------------------------------------------


def test_translate_prints_one_line_per_text(translator: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(f"{BIRDS}\n\n{CLOUDS}\n{CAT}", encoding="utf-8")
    trivium("translate", translator, "-i", tmp_path / "in.txt", "-o", tmp_path / "out.txt", "--batch-size", "2")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == f"{BIRDS}\n\n{CLOUDS}\n{CAT}\n"
    assert printed("translate", translator, BIRDS, "", CLOUDS, CAT) == f"{BIRDS}\n\n{CLOUDS}\n{CAT}\n"
    assert printed("translate", translator, DOGS) == DOGS.replace("\n", " ") + "\n"
    assert printed("translate", translator, CAT, "--max-length", "3", stdin="") == "the cat\n"


# --- generate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["ctranslate2", "onnx"])
def test_converted_translator_gives_same_output(tokenizer: TriviumTokenizer, tmp_path: Path, engine: str) -> None:
    """Test with few operations, because tracing an ONNX graph takes seconds per layer, and some for sinusoids."""
    shape = {"encoder_layers": 1, "decoder_layers": 1, "norm_position": "pre", "position_embedding_type": "learned"}
    model = TriviumForConditionalGeneration(tiny_config(vocab_size=len(tokenizer), **shape))
    folder, converted = save(shake(model, std=0.3), tokenizer, tmp_path / "model"), tmp_path / "converted"
    assert f"--engine {engine}" in printed("convert", folder, converted, "--to", engine)
    short = ["--max-length", "8"]
    expected = printed("translate", folder, *TEXTS, *short)
    assert len(set(expected.splitlines())) > 1
    assert printed("translate", converted, *TEXTS, *short, "--engine", engine) == expected
    assert f"was converted for {engine}. Use it with --engine {engine}" in trivium("translate", converted, CAT)[2]


@pytest.mark.parametrize("engine", ["ctranslate2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_translate_converts_on_the_fly(translator: Path, language_model: Path, engine: str) -> None:
    expected = printed("translate", translator, *TEXTS)
    assert printed("translate", translator, *TEXTS, "--engine", engine) == expected
    code, _, errors = trivium("translate", language_model, CAT, "--engine", engine)
    assert (code, "not hold a translation model" in errors) == (1, True), errors


def test_missing_engine_is_named(translator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Make the import fail as if the engine were not installed.
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    for arguments in (["convert", translator, tmp_path / "out", "--to"], ["translate", translator, CAT, "--engine"]):
        code, _, errors = trivium(*arguments, "ctranslate2")
        assert (code, "pip install ctranslate2" in errors) == (2, True), errors
    assert not (tmp_path / "out").exists()


def test_options_of_other_engines_are_refused(translator: Path, tmp_path: Path) -> None:
    code, _, errors = trivium("convert", translator, tmp_path / "out", "--to", "marian", "--quantization", "int8")
    assert (code, "--quantization requires --to ctranslate2 or gguf or onnx" in errors) == (2, True), errors
    for options in (["--to", "gguf", "--layout", "transformers.js"], ["--to", "onnx", "--layout", "browser"]):
        code, _, errors = trivium("convert", translator, tmp_path / "out", *options)
        assert (code, "must be 'transformers.js', with --to onnx" in " ".join(errors.split())) == (2, True), errors
    code, _, errors = trivium("convert", translator, tmp_path / "out", "--to", "tensorflow")
    assert (code, "--to is 'tensorflow', but must be one of bart" in errors, "onnx" in errors) == (1, True, True)
    sizes = []
    for name, options in {"large": [], "small": ["--quantization", "int8"]}.items():
        printed("convert", translator, tmp_path / name, "--to", "ctranslate2", *options)
        sizes.append((tmp_path / name / "model.bin").stat().st_size)
    assert sizes[1] < sizes[0]


def test_generate_continues_texts_in_order(language_model: Path) -> None:
    prompts = ["two", "the cat sat on", "über den", "birds fly"]
    output = printed("generate", language_model, *prompts, "--batch-size", "3")
    assert output == "".join(text + "\n" for text in (DOGS, CAT, CLOUDS, BIRDS))


def test_generate_writes_json_lines(language_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("birds\nüber\n\ntwo", encoding="utf-8")
    assert trivium("generate", language_model, "-i", tmp_path / "in.txt", "-o", tmp_path / "out.jsonl")[0] == 0
    content = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    assert "Wolken 🙂" in content, "not escaped: people read it too"
    assert [row["prompt"] for row in rows] == ["birds", "über", "", "two"]
    wholes = [[row["prompt"] + continuation for continuation in row["continuations"]] for row in rows]
    assert wholes[:2] + wholes[3:] == [[BIRDS], [CLOUDS], [DOGS]]
    assert wholes[2][0] in TEXTS, "an empty text is continued from its beginning"


def test_generate_reads_stdin(language_model: Path) -> None:
    assert printed("generate", language_model, stdin="birds\r\nthe\n") == f"{BIRDS}\n{CAT}\n"
    assert printed("generate", language_model, stdin="") == ""


def test_generate_without_prompt_at_a_terminal(language_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (texts, text_files):
        monkeypatch.setattr(module, "at_terminal", lambda: True)
    output = printed("generate", language_model, "--sample", "--num", "8", "--temperature", "0.5")
    found = [text for text in TEXTS if text in output]
    assert len(found) > 1
    assert sum(output.count(text) for text in TEXTS) >= 6


def test_empty_prompt_without_bos(language_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(language_model, tmp_path / "bare")
    TriviumTokenizer.from_pretrained(folder, add_bos_token=False).save_pretrained(folder)
    assert printed("generate", folder, "") == printed("generate", language_model, "")


def test_generate_is_reproducible_with_seed(language_model: Path) -> None:
    def draw(seed: int) -> str:
        return printed("generate", language_model, "the", "--sample", "--temperature", "3", "--seed", str(seed))

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(3)}) > 1


def test_generate_accepts_generation_options(language_model: Path) -> None:
    generate: list[str | Path] = ["generate", language_model, "birds"]
    assert printed(*generate, "--max-new-tokens", "2") == "birds fly south\n"
    beams = printed(*generate, "--beams", "3", "--num", "3").split("\n")
    assert BIRDS in beams
    certain = ["--sample", "--temperature", "9"]
    assert printed(*generate, *certain, "--top-k", "1", "--num", "2") == f"{BIRDS}\n{BIRDS}\n"
    assert printed(*generate, *certain, "--top-p", "0") == f"{BIRDS}\n"


# --- classify --------------------------------------------------------------------------------------------------------


def test_classify_labels_texts_in_order(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join([BIRDS, CAT, " ", CLOUDS]), encoding="utf-8")
    trivium("classify", classifier, "-i", tmp_path / "in.txt", "-o", tmp_path / "out.tsv", "--batch-size", "2")
    rows = rows_of((tmp_path / "out.tsv").read_text())
    assert [[name for name, _ in row] for row in rows] == [["air"], ["ground"], [], ["air"]]
    assert all(score > 0.8 for row in rows for _, score in row)
    assert rows_of(printed("classify", classifier, BIRDS, CAT, "", CLOUDS)) == rows
    assert rows_of(printed("classify", classifier, stdin=f"{BIRDS}\n{CAT}\n\n{CLOUDS}\n")) == rows
    assert printed("classify", classifier, stdin="\n") == "\n"


def test_classify_shows_top_k_labels(classifier: Path) -> None:
    [row] = rows_of(printed("classify", classifier, DOGS, "--top-k", "7"))
    assert row[0][0] == "ground"
    assert {name for name, _ in row} == {"ground", "air", r"sea\tor\\lake"}
    assert sum(score for _, score in row) == pytest.approx(1, abs=2e-4)
    assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)


def test_classify_truncates_as_training_does(classifier: Path) -> None:
    assert rows_of(printed("classify", classifier, "birds " * POSITIONS))[0]


def test_classify_multi_label(folders: Path, tokenizer: TriviumTokenizer) -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    folder = save_classifier(
        folders / "several", tokenizer, labels, num_labels=2, problem_type="multi_label_classification"
    )
    rows = [dict(row) for row in rows_of(printed("classify", folder, *TEXTS))]
    assert [[round(row[f"LABEL_{i}"]) for i in range(2)] for row in rows] == labels.tolist()
    assert len(rows_of(printed("classify", folder, CAT, "--top-k", "1"))[0]) == 1


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_classify_prints_regression_values(
    folders: Path, tokenizer: TriviumTokenizer, problem_type: str | None
) -> None:
    labels = torch.tensor([-3.0, 0.0, 2.0, 5.0])
    folder = save_classifier(folders / "regression", tokenizer, labels, num_labels=1, problem_type=problem_type)
    rows = rows_of(printed("classify", folder, *TEXTS))
    assert [row[0][1] for row in rows] == pytest.approx(labels.tolist(), abs=0.5)


# --- fill-mask -------------------------------------------------------------------------------------------------------


def test_fill_mask_predicts_in_order(masked_model: Path, tmp_path: Path) -> None:
    lines = ["birds fly <mask> in winter.", "", "the cat <mask> on the mat.", CLOUDS.replace("Wolken", "<mask>")]
    (tmp_path / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    trivium("fill-mask", masked_model, "-i", tmp_path / "in.txt", "-o", tmp_path / "out.tsv", "--batch-size", "2")
    rows = rows_of((tmp_path / "out.tsv").read_text(encoding="utf-8"))
    assert [row[0][0] if row else None for row in rows] == [" south", None, " sat", " Wolken"]
    assert [len(row) for row in rows] == [5, 0, 5, 5]
    assert all(row[0][1] > 0.5 for row in rows if row)
    again = rows_of(printed("fill-mask", masked_model, *lines, "--top-k", "1"))
    assert again == [row[:1] for row in rows]


def test_fill_mask_fills_several_masks(masked_model: Path, tokenizer: TriviumTokenizer) -> None:
    text = "two dogs <mask><mask>across the road."
    [row] = rows_of(printed("fill-mask", masked_model, text, "--top-k", "2"))
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = TriviumForMaskedLM.from_pretrained(masked_model)(**inputs).logits
    probabilities, ids = logits[inputs["input_ids"] == tokenizer.mask_token_id].softmax(-1).topk(2)
    assert [name for name, _ in row] == [tokenizer.decode(i).replace("\n", r"\n") for i in ids.flatten()]
    assert [score for _, score in row] == pytest.approx(probabilities.flatten().tolist(), abs=1e-4)
    assert r"\n" in dict(row), "a line break would end the row"


def test_fill_mask_top_k_is_limited_to_vocabulary(masked_model: Path, tokenizer: TriviumTokenizer) -> None:
    [row] = rows_of(printed("fill-mask", masked_model, "the <mask>", "--top-k", "99999"))
    assert len(row) == len(tokenizer)


def test_text_without_mask_is_named(masked_model: Path) -> None:
    code, _, errors = trivium("fill-mask", masked_model, "a <mask>", "no gap")
    assert code == 1
    assert "A text has no <mask> to fill: 'no gap'." in errors


# --- Interactive input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "model"), [("classify", "classifier"), ("fill-mask", "masked_model")])
def test_terminal_lines_are_answered_one_by_one(
    command: str, model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_so_far: list[int] = []
    answered: list[str] = []

    def typed() -> Iterator[bytes]:
        for _ in range(3):
            answers_so_far.append(len(answered))
            yield b"birds <mask> south\n"

    folder = request.getfixturevalue(model)
    monkeypatch.setattr(text_files, "at_terminal", lambda: True)
    monkeypatch.setattr(text_files, "print", lambda line, flush: answered.append(line), raising=False)
    monkeypatch.setattr(text_files.sys, "stdin", SimpleNamespace(buffer=typed()))
    texts_command = {"classify": texts.classify, "fill-mask": texts.fill_mask}[command]
    texts_command(folder, top_k=1)
    assert answers_so_far == [0, 1, 2]


# --- Errors ----------------------------------------------------------------------------------------------------------

FOLDERS = {
    "translate": "translator",
    "generate": "language_model",
    "classify": "classifier",
    "fill-mask": "masked_model",
    "tag": "tagger",
}


@pytest.mark.parametrize("fitting", FOLDERS)
@pytest.mark.parametrize("command", FOLDERS)
def test_model_for_another_command_is_refused(command: str, fitting: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(FOLDERS[fitting])
    code, output, errors = trivium(command, folder, "the <mask>")
    if command == fitting:
        assert code == 0
        return
    assert (code, output) == (1, "")
    assert re.search(rf"holds a Trivium\w+, which is for `trivium {fitting}`, not for `trivium {command}`", errors)
    assert ("trivium split" in errors) == ((command, fitting) == ("generate", "translate"))
    assert errors.count("\n") == 1


def test_model_without_head_is_refused(tokenizer: TriviumTokenizer, tmp_path: Path) -> None:
    save(TriviumEncoderModel(tiny_config(vocab_size=len(tokenizer), decoder_layers=0)), tokenizer, tmp_path)
    code, _, errors = trivium("classify", tmp_path, "text")
    assert code == 1
    assert "holds a TriviumEncoderModel, which is not supported by any command that takes texts." in errors
    (tmp_path / "config.json").write_text('{"model_type": "trivium"}')
    assert "holds a model of unknown class" in trivium("generate", tmp_path, "text")[2]


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "text"], 1, "nowhere is not a saved model"),
        ([".", "text", "--output", "nowhere/x"], 1, "there is no folder nowhere"),
        ([".", "--input", "nowhere.txt"], 2, "does not exist"),
        ([".", "text", "--input", __file__], 2, "Texts and --input are mutually exclusive."),
    ],
)
def test_errors_are_one_line_with_exit_code(command: str, arguments: list[str], code: int, message: str) -> None:
    exit_code, output, errors = trivium(command, *arguments)
    assert (exit_code, output) == (code, "")
    assert message in " ".join(errors.replace("│", " ").split())
    assert "Traceback" not in errors


@pytest.mark.parametrize("option", ["--temperature", "--top-k", "--top-p"])
@pytest.mark.parametrize("command", ["translate", "generate"])
def test_sampling_options_require_sampling(command: str, option: str) -> None:
    code, _, errors = trivium(command, ".", "text", option, "1")
    assert code == 2
    assert "require --sample" in errors


def test_generate_refuses_impossible_requests(language_model: Path, tmp_path: Path) -> None:
    several = trivium("generate", language_model, "the", "--num", "3")
    assert several[0] == 1
    assert "--num is 3: several continuations need --sample, or at least as many --beams." in several[2]
    too_long = trivium("generate", language_model, "the " * POSITIONS)
    assert too_long[0] == 1
    assert f"max_position_embeddings={POSITIONS}" in too_long[2]
    (tmp_path / "empty.txt").touch()
    empty = trivium("generate", language_model, "-i", tmp_path / "empty.txt", "-o", tmp_path / "out.txt")
    assert empty[0] == 1
    assert "empty" in empty[2]
    assert not (tmp_path / "out.txt").exists()
