"""Test the demo: its results match the model, and its imports, command and Space work."""

import ast
import json
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from clean import run_without_trivium
from hub_server import HubServer
from packaging.requirements import Requirement
from tiny import tiny_model
from transformers import PreTrainedModel
from typer.testing import CliRunner

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumTokenizer,
)
from trivium.demo import launch
from trivium.demo.generating import Generation, generate_steps
from trivium.demo.introspect import MAX_CHARACTERS, MAX_TOKENS, UnfitText, read
from trivium.demo.judging import classify, fill_masks, tag
from trivium.demo.page import build
from trivium.evaluation import predict_tags
from trivium.hub import render_card
from trivium.hub.card import introduce
from trivium.hub.space import PAGE, SOURCE, write_space
from trivium.recipe import load_recipe
from trivium.tokenization import train_tokenizer
from trivium_cli import app

TEXTS = [
    "the cat sat on the mat.",
    "two dogs ran\nacross the road.",
    "über den Wolken 🙂",
    "مرحبا بالعالم",
    "早上好",
] * 2
TEXT = "the cat ran 🐈"
REPO = "someone/model"


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture(scope="module")
def beginner() -> TriviumTokenizer:
    """Return a tokenizer for continuations, without EOS."""
    return train_tokenizer(TEXTS, vocab_size=400, add_bos_token=True, add_eos_token=False)


def model_of(kind: type[PreTrainedModel], tokenizer: TriviumTokenizer, **overrides: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_model(kind, vocab_size=len(tokenizer), max_position_embeddings=1024, **overrides)


@pytest.fixture(scope="module")
def translator(tokenizer: TriviumTokenizer) -> PreTrainedModel:
    return model_of(TriviumForConditionalGeneration, tokenizer)


@pytest.fixture(scope="module")
def writer(tokenizer: TriviumTokenizer) -> PreTrainedModel:
    return model_of(TriviumForCausalLM, tokenizer)


def written(model: PreTrainedModel, tokenizer: TriviumTokenizer, text: str = TEXT, **options: object) -> Generation:
    inputs = read(model, tokenizer, text)
    return list(generate_steps(model, tokenizer, inputs, 12, **{"num_beams": 1, "do_sample": False, **options}))[-1]


# --- Input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*TEXTS[:5], "a  b\t<mask> c", "<img src=x onerror=alert(1)>", "\ud800x", "\0"])
def test_pieces_concatenate_to_the_text(translator: PreTrainedModel, tokenizer: TriviumTokenizer, text: str) -> None:
    inputs = read(translator, tokenizer, text)
    assert "".join(piece.text for piece in inputs.pieces[:-1]) == text.encode(errors="replace").decode()
    assert inputs.pieces[-1].is_special
    assert sum(piece.tokens for piece in inputs.pieces) == len(inputs.input_ids)


def test_invalid_texts_are_refused_with_a_message(
    translator: PreTrainedModel, writer: PreTrainedModel, tokenizer: TriviumTokenizer, beginner: TriviumTokenizer
) -> None:
    for text, message in [
        ("", "The text is empty"),
        (" \n", "The text is empty"),
        ("x" * 100_000, f"100,000 characters, but at most {MAX_CHARACTERS:,} are allowed"),
        ("早" * 2_000, f"tokens, but at most {MAX_TOKENS:,} are allowed"),
    ]:
        with pytest.raises(UnfitText, match=message):
            read(translator, tokenizer, text)
    assert read(writer, beginner, "").input_ids == [beginner.bos_token_id]


# --- Generation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_translation_steps_match_model(translator: PreTrainedModel, tokenizer: TriviumTokenizer) -> None:
    inputs = tokenizer(TEXT, return_tensors="pt")
    ids = translator.generate(**inputs, max_new_tokens=12, max_length=None)[0]
    writing = written(translator, tokenizer)
    assert writing.is_complete
    assert writing.text == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    # Run the whole sequence in one forward pass without a cache.
    whole = translator(**inputs, decoder_input_ids=ids[None, :-1], output_attentions=True)
    probabilities = whole.logits[0].softmax(-1)
    by_token = whole.cross_attentions[-1][0].mean(0)
    counts = [piece.tokens for piece in writing.read]
    assert max(counts) > 1, "the cat takes several tokens"
    assert len(writing.steps) == len(ids) - 1
    for i, step in enumerate(writing.steps):
        assert step.probability == pytest.approx(probabilities[i, ids[i + 1]].item(), abs=1e-6)
        best = probabilities[i].topk(6).values.tolist()
        assert [share for _, share in step.alternatives][:5] == pytest.approx(best[:5], abs=1e-6)
        assert step.attention == pytest.approx([part.sum().item() for part in by_token[i].split(counts)], abs=1e-6)


@torch.no_grad()
def test_continuation_steps_match_model(writer: PreTrainedModel, beginner: TriviumTokenizer) -> None:
    tokenizer = beginner
    inputs = tokenizer(TEXT, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    ids = writer.generate(**inputs, max_new_tokens=12)[0]
    writing = written(writer, tokenizer)
    assert writing.text == tokenizer.decode(ids, skip_special_tokens=True)[len(TEXT) :].rstrip("\ufffd")
    whole = writer(input_ids=ids[None], output_attentions=True)
    probabilities, weights = whole.logits[0].softmax(-1), whole.attentions[-1][0].mean(0)
    for i, step in enumerate(writing.steps, start=start):
        assert step.probability == pytest.approx(probabilities[i - 1, ids[i]].item(), abs=1e-6)
        parts = weights[i - 1, :i].split([*(piece.tokens for piece in writing.read), *[1] * (i - start)])
        assert step.attention == pytest.approx([part.sum().item() for part in parts], abs=1e-6)


@pytest.mark.parametrize("kind", ["translator", "writer"])
def test_beams_match_generate(kind: str, tokenizer: TriviumTokenizer, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    writing = written(model, tokenizer, num_beams=3)
    scores = [score for _, score in writing.beams]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert writing.text.strip() == writing.beams[0][0].rstrip("\ufffd").strip()
    # With a length penalty of 1 the score is the mean log probability of the tokens.
    log_probabilities = torch.tensor([step.probability for step in writing.steps]).log()
    assert scores[0] == pytest.approx(log_probabilities.mean().item(), abs=1e-4)


def test_tokens_are_streamed_and_stopping_ends_generation(
    translator: PreTrainedModel, tokenizer: TriviumTokenizer
) -> None:
    threads = threading.active_count()
    stream = generate_steps(translator, tokenizer, read(translator, tokenizer, TEXT), 200)
    lengths = [len(next(stream).steps) for _ in range(3)]
    assert lengths == [1, 2, 3]
    stream.close()
    assert threading.active_count() == threads


def test_model_error_is_raised(
    writer: PreTrainedModel, tokenizer: TriviumTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="temperature"):
        written(writer, tokenizer, do_sample=True, temperature=-1.0)


def test_two_vocabularies() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, target_texts=[text[::-1] for text in TEXTS])
    sizes = {"vocab_size": len(tokenizer), "decoder_vocab_size": tokenizer.target_vocab_size}
    model = tiny_model(**sizes)
    ids = model.generate(**tokenizer(TEXT, return_tensors="pt"), max_new_tokens=12, max_length=None)[0]
    writing = written(model, tokenizer)
    assert writing.text == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    assert "".join(piece.text for piece in writing.read[:-1]) == TEXT


# --- Classification and filling masks --------------------------------------------------------------------------------


@torch.no_grad()
def test_mask_fillings_match_model(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForMaskedLM, tokenizer)
    text = "the <mask> sat on the <mask>"
    found = fill_masks(model, tokenizer, read(model, tokenizer, text))
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    probabilities = model(input_ids=ids).logits[0].softmax(-1)
    for fillings, place in zip(found, (ids[0] == tokenizer.mask_token_id).nonzero().flatten(), strict=True):
        assert [share for _, share in fillings] == pytest.approx(
            probabilities[place].topk(8).values.tolist(), abs=1e-6
        )
        assert fillings[0][0] == tokenizer.decode([probabilities[place].argmax()])
    with pytest.raises(UnfitText, match=r"no mask.*<mask>"):
        fill_masks(model, tokenizer, read(model, tokenizer, "no mask"))


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "multi_label_classification", "regression"])
def test_labels_match_model(tokenizer: TriviumTokenizer, kind: str | None) -> None:
    labels = 1 if kind == "regression" else 3
    model = model_of(TriviumForSequenceClassification, tokenizer, num_labels=labels, problem_type=kind)
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
    expected = {None: logits.softmax(-1), "multi_label_classification": logits.sigmoid(), "regression": logits}[kind]
    found = classify(model, read(model, tokenizer, TEXT))
    assert [score for _, score in found] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-6)
    assert found[0][0] == model.config.id2label[expected.argmax().item()]


@torch.no_grad()
def test_tags_match_first_token_of_each_word(tokenizer: TriviumTokenizer) -> None:
    model = model_of(TriviumForTokenClassification, tokenizer, num_labels=5)
    words = ["übermorgen", "the", "🙂", "catcat", "."]
    [expected] = predict_tags(model, tokenizer, [words])
    found = tag(model, tokenizer, "  ".join(words))
    assert [(word, name) for word, name, _ in found] == list(zip(words, expected, strict=True))
    assert all(0.2 < probability <= 1 for *_, probability in found)


# --- The page and its files ------------------------------------------------------------------------------------------


def test_model_without_head_has_no_page(tokenizer: TriviumTokenizer) -> None:
    with pytest.raises(ValueError, match=r"model.*TriviumEncoderModel.*page"):
        build(model_of(TriviumForMaskedLM, tokenizer).base_model, tokenizer, title="None")


def test_demo_files_are_self_contained() -> None:
    allowed = {"gradio", "torch", "transformers"}
    for file in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed | sys.stdlib_module_names
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).split(".")[0] in allowed | sys.stdlib_module_names, file
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, file
                assert (SOURCE / f"{node.module}.py").is_file(), file


def test_missing_gradio_error_says_what_to_install(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["gradio"] = None  # Importing it fails.
from trivium_cli import app
app(["demo", sys.argv[1]])
"""
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "Error: `trivium demo` needs gradio, which is not installed: `pip install gradio`.\n"


def test_command_serves_on_localhost_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {}

    class Page:
        local_url = "http://127.0.0.1:7865/"

        def block_thread(self) -> None:
            served["blocks"] = True

    def launch(model: PreTrainedModel, tokenizer: TriviumTokenizer, **options: object) -> Page:
        served.update(options, model=type(model))
        return Page()

    monkeypatch.setattr("trivium.demo.launch", launch)
    result = CliRunner().invoke(app, ["demo", str(folder), "--port", "7865"])
    assert result.exit_code == 0, result.stderr
    assert Page.local_url in result.stdout
    assert served["blocks"]
    assert (served["server_name"], served["server_port"], served["inbrowser"]) == ("127.0.0.1", 7865, False)
    assert (served["model"], served["title"]) == (TriviumForConditionalGeneration, "run")
    nowhere = CliRunner().invoke(app, ["demo", "nowhere"])
    assert (nowhere.exit_code, "nowhere is not a saved model" in nowhere.stderr) == (1, True)


def test_titles_are_escaped_once(folder: Path, tmp_path: Path) -> None:
    """The title is plain text on the page and in the Hub metadata, but HTML in the heading of README.md."""
    named = folder.rename(tmp_path / "cats & <dogs>")
    assert introduce(named).title == "cats & <dogs>"
    load_recipe("numbers", [f"training.output_dir={named}", "card.title='Cats & <dogs>'", "card.examples=[]"]).save(
        named
    )
    write_space(named, tmp_path / "space", REPO)
    app_file, readme = ((tmp_path / "space" / name).read_text() for name in ("app.py", "README.md"))
    assert "title='Cats & <dogs>'" in app_file
    assert yaml.safe_load(readme.split("---")[1])["title"] == "Cats & <dogs>"
    assert "\n# Cats &amp; &lt;dogs&gt;\n" in readme
    assert "\n# Cats &amp; &lt;dogs&gt;\n" in render_card(named, REPO)["README.md"].decode()


def test_uploads_are_disabled(writer: PreTrainedModel, beginner: TriviumTokenizer) -> None:
    """Gradio's upload route must be disabled, because the page accepts only text."""
    page = launch(writer, beginner, title="Cats & <dogs>", prevent_thread_lock=True, quiet=True)
    try:
        assert "Cats &amp; &lt;dogs&gt;" in httpx.get(page.local_url).text
        address = f"{page.local_url}gradio_api/upload"
        for content in (b"x", b"x" * 2_000_000):
            assert httpx.post(address, files={"files": ("file.txt", content)}, timeout=60).status_code == 413
    finally:
        page.close()


# --- The Space -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, translator: PreTrainedModel, tokenizer: TriviumTokenizer) -> Path:
    folder = tmp_path / "run"
    translator.float().save_pretrained(folder)
    translator.double()
    tokenizer.save_pretrained(folder)
    return folder


def push(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["push", *map(str, arguments)], env={"COLUMNS": "120"})
    return result.exit_code, " ".join(result.stdout.split()), re.sub(r"\x1b\[[\d;]*m", "", result.stderr)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.hub.check_folder", lambda folder, trust_remote_code: None)


@pytest.mark.usefixtures("unchecked")
def test_space_follows_its_model(folder: Path, hub: HubServer) -> None:
    code, output, _ = push(folder, REPO, "--space", "--dry-run")
    assert code == 0
    assert "The demo, as a new Space:" in output
    assert (f"{PAGE}/page.js" in output, hub.repositories, (folder / "space").exists()) == (True, {}, False)

    code, output, errors = push(folder, REPO, "--space", "--private")
    assert code == 0, errors
    assert f"{hub.url}/spaces/{REPO}" in output
    space = f"spaces/{REPO}"
    files, model = hub.files(space), hub.commits(REPO)[0]
    assert hub.repositories[space].private
    assert set(files) == {"README.md", "app.py", "requirements.txt"} | {
        f"{PAGE}/{file.name}" for file in SOURCE.iterdir() if file.is_file()
    }
    assert files == {name: (folder / "space" / name).read_bytes() for name in files}
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert metadata["sdk"] == "gradio"
    assert (metadata["sdk_version"], metadata["app_file"], metadata["models"]) == (version("gradio"), "app.py", [REPO])
    assert f'"revision": {model.id!r}' in files["app.py"].decode()
    requirements = map(Requirement, files["requirements.txt"].decode().splitlines())
    assert [requirement.name for requirement in requirements] == ["torch", "transformers"]
    assert not any(name.startswith("space") for name in hub.files(REPO))

    (folder / "space" / PAGE / "__pycache__").mkdir()
    (folder / "space" / PAGE / "__pycache__" / "page.pyc").touch()  # left over from running the page locally
    assert "The Space is up to date: there is no new commit." in push(folder, REPO, "--space")[1]
    assert len(hub.commits(space)) == 2
    # Files of an older version of the page are deleted; all other files, and files edited by the user, are kept.
    hub.commit(space, {f"{PAGE}/old.py": b"", "README.md": b"Mine.", "notes.txt": b"mine"})
    assert push(folder, REPO, "--space")[0] == 0
    changed = hub.files(space)
    assert changed == {**files, "README.md": b"Mine.", "notes.txt": b"mine"}


@pytest.mark.usefixtures("unchecked")
def test_existing_private_space_is_updated(folder: Path, hub: HubServer) -> None:
    hub.create(f"spaces/{REPO}", private=True)
    code, _, errors = push(folder, REPO, "--space", "--public")
    assert code == 1
    assert "exists and is private" in errors
    assert REPO not in hub.repositories, "nothing was sent before all was clear"


def test_no_space_for_model_without_page(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["TriviumEncoderModel"]}))
    with pytest.raises(ValueError, match=r"model.*page"):
        write_space(folder, tmp_path / "space", REPO)
    assert not (tmp_path / "space").exists()


ANSWER = """
import runpy, threading, time
from gradio_client import Client
app, model, port = arguments
sys.argv = [app, model]
sys.path.insert(0, str(Path(app).parent))  # As `python app.py` does.
threading.Thread(target=runpy.run_path, args=(app,), kwargs={"run_name": "__main__"}, daemon=True).start()
for attempt in range(100):
    try:
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        break
    except Exception:
        time.sleep(0.2)
events = list(client.submit("the cat ran", api_name="/translate"))
assert "trivium" not in sys.modules
Path("answer.jsonl").write_text(events[-1])
import os
os._exit(0)
"""


@pytest.mark.slow
def test_space_serves_without_package(
    folder: Path, tmp_path: Path, translator: PreTrainedModel, tokenizer: TriviumTokenizer, free_port: int
) -> None:
    space = tmp_path / "space"
    write_space(folder, space, REPO)
    run_without_trivium(
        ANSWER,
        str(space / "app.py"),
        str(folder),
        free_port,
        folder=tmp_path,
        present=["typer", "rich"],  # Gradio itself depends on these packages.
        GRADIO_SERVER_PORT=str(free_port),
    )
    events = [json.loads(line) for line in (tmp_path / "answer.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "end"
    inputs = tokenizer("the cat ran", return_tensors="pt")
    ids = translator.float().generate(**inputs, max_new_tokens=inputs["input_ids"].shape[1] + 50, max_length=None)
    translator.double()
    assert "".join(step["text"] for step in events if step["kind"] == "step") == tokenizer.decode(
        ids[0], skip_special_tokens=True
    ).rstrip("\ufffd")


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
