"""Test publishing with the real huggingface_hub client, to a local server that implements the Hub API."""

import hashlib
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from clean import run_without_trivium
from hub_folders import save
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import PreTrainedModel
from typer.testing import CliRunner

from trivium import TriviumForCausalLM, TriviumTokenizer
from trivium.hub import push
from trivium.recipe import load_recipe
from trivium_cli import app

REPO = "someone/model"
TEXTS = ["the cat sat on the mat.", "two dogs ran across the road.", "über den Wolken"] * 2


def uploads(hub: HubServer) -> list[str]:
    return [request.path for request in hub.requests if request.method == "PUT"]


# --- Uploads ---------------------------------------------------------------------------------------------------------

# Runs in a process in which Trivium is not installed.
LOAD = """
repo, expected = arguments
for revision, logits in expected:
    options = {"trust_remote_code": True, "revision": revision}
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(repo, dtype=torch.float32, **options).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids, decoder_input_ids=ids).logits, torch.tensor(logits))
    tokenizer = AutoTokenizer.from_pretrained(repo, **options)
    assert tokenizer.decode(tokenizer("the cat")["input_ids"], skip_special_tokens=True) == "the cat"
"""


@torch.no_grad()
def logits(model: PreTrainedModel) -> list:
    ids = torch.tensor([[5, 6, 7]])
    return model(input_ids=ids, decoder_input_ids=ids).logits.tolist()


@pytest.mark.usefixtures("unchecked")
def test_one_commit_with_only_the_files_of_the_model(folder: Path, hub: HubServer) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pushed = push(folder, REPO, private=True, message="For you")
    first, created = hub.commits(REPO)
    assert (pushed.commit, pushed.head, first.title) == (first.id, created.id, "For you")
    assert pushed.changed
    assert hub.repositories[REPO].private
    files = hub.files(REPO)
    code = {path.name for path in folder.glob("*.py")}
    shards = {path.name for path in folder.glob("*.safetensors")}
    assert len(shards) > 1
    assert set(files) >= {"config.json", "model.safetensors.index.json", "tokenizer.json", "LICENSE", *code, *shards}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".txt")) or "/" in name]
    assert b"secret" not in files.values()
    for name in set(files) & {path.name for path in folder.iterdir()}:
        assert files[name] == (folder / name).read_bytes()
    assert files["README.md"].startswith(b"---\n")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("unchecked", "undrawn")
def test_uploaded_recipe_has_no_local_paths(folder: Path, hub: HubServer) -> None:
    data, output = folder / "here" / "corpus", folder / "runs"
    load_recipe("numbers", [f"data.train={data}/train", f"training.output_dir={output}"]).save(folder)
    push(folder, REPO)
    published = hub.files(REPO)["recipe.yaml"]
    assert str(folder.parent).encode() not in published
    (folder / "recipe.yaml").write_bytes(published)
    assert load_recipe(folder).data.train == "corpus/train"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("private", [True, False])
def test_repository_visibility(folder: Path, hub: HubServer, private: bool) -> None:
    push(folder, REPO, private=private)
    assert hub.repositories[REPO].private == private
    push(folder, REPO)
    with pytest.raises(ValueError, match=f"{'private' if private else 'public'}"):
        push(folder, REPO, private=not private)


@pytest.mark.usefixtures("unchecked")
def test_unchanged_folder_makes_no_commit(folder: Path, hub: HubServer) -> None:
    first = push(folder, REPO)
    sent = uploads(hub)
    second = push(folder, REPO)
    assert len(hub.commits(REPO)) == 2
    assert (second.commit, second.changed) == (first.commit, False)
    assert uploads(hub) == sent


@pytest.mark.usefixtures("unchecked")
def test_dry_run_writes_nothing(folder: Path, hub: HubServer) -> None:
    planned = push(folder, REPO, dry_run=True)
    assert (planned.creates, planned.commit) == ("repository", None)
    assert {"model.safetensors.index.json", "README.md"} <= set(planned.files)
    hub.create(REPO)
    assert push(folder, REPO, dry_run=True, revision="new").creates == "branch"
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
    assert len(hub.commits(REPO)) == 1


@pytest.mark.usefixtures("unchecked")
def test_update_deletes_only_files_of_the_old_model(
    folder: Path, hub: HubServer, tmp_path: Path, tokenizer: TriviumTokenizer
) -> None:
    old_code = (folder / "modeling_trivium.py").read_text()
    (folder / "modeling_trivium.py").write_text(old_code + "\nfrom .old_part import Old\n")
    (folder / "old_part.py").write_text("from .older_part import Old\n")
    (folder / "older_part.py").write_text("Old = 1\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    push(folder, REPO)
    other_files = {
        "handler.py": b"import json\n",
        "onnx/model.onnx": b"\0",
        "notes.txt": b"mine",
        "sub/layers.py": b"",
    }
    hub.commit(REPO, other_files)
    old = set(hub.files(REPO))
    new = tiny_model(TriviumForCausalLM, vocab_size=len(tokenizer), encoder_layers=0)
    pushed = push(save(tmp_path / "new", new, tokenizer), REPO)
    files = hub.files(REPO)
    assert {name: files.get(name) for name in other_files} == other_files
    gone = {name for name in old if re.fullmatch(r"model-.*|model\.safetensors\.index\.json|old.*|.*\.jinja", name)}
    assert len(gone) > 6
    assert old - set(files) == gone == set(pushed.deletions)
    assert "model.safetensors" in files
    assert set(hub.files(REPO, pushed.head or "")) == old, "an old revision stays as it was"


@pytest.mark.usefixtures("unchecked")
def test_branch(folder: Path, hub: HubServer) -> None:
    hub.create(REPO)
    push(folder, REPO, revision="trial/1")
    assert hub.files(REPO) == {}
    assert "config.json" in hub.files(REPO, "trial/1")
    push(folder, "someone/new", revision="trial")
    assert hub.files("someone/new") == {}
    assert "config.json" in hub.files("someone/new", "trial")


@pytest.mark.usefixtures("unchecked")
def test_card_written_by_user_is_kept(folder: Path, hub: HubServer) -> None:
    push(folder, REPO)
    card = hub.files(REPO)["README.md"]
    hub.commit(REPO, {"README.md": b"Old and not ours."})
    (folder / "README.md").write_bytes(card)
    push(folder, REPO)
    assert hub.files(REPO)["README.md"] == b"Old and not ours.", "edited on the Hub"
    (folder / "README.md").write_text("Written here.")
    push(folder, REPO)
    assert hub.files(REPO)["README.md"] == b"Written here."


# --- Loading from the Hub --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_published_model_loads_by_name_commit_and_offline(
    folder: Path, hub: HubServer, tmp_path: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer
) -> None:
    first = push(folder, REPO, private=True)
    other = tiny_model(vocab_size=len(tokenizer)).float()
    push(save(tmp_path / "other", other, tokenizer), REPO)
    expected = [(None, logits(other)), (first.commit, logits(model))]
    online = hub.environment(tmp_path / "home")
    run_without_trivium(LOAD, REPO, expected, folder=tmp_path, **online)
    request_count = len(hub.requests)
    run_without_trivium(LOAD, REPO, expected, folder=tmp_path)  # offline, with the cache in `home`
    assert len(hub.requests) == request_count


@pytest.mark.slow
def test_model_pushed_by_transformers_loads(
    hub: HubServer, tmp_path: Path, model: PreTrainedModel, tokenizer: TriviumTokenizer
) -> None:
    model.push_to_hub(REPO)
    tokenizer.push_to_hub(REPO)
    expected = [(None, logits(model))]
    run_without_trivium(LOAD, REPO, expected, folder=tmp_path, **hub.environment(tmp_path / "home"))


# --- Failures --------------------------------------------------------------------------------------------------------

PLACES = ("/preupload/", "/objects/batch", "/lfs/", "/commit/")  # of the requests of a push, in order


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("status", "place", "error", "message"),
    [
        (401, "/commit/", PermissionError, "hf auth login"),
        (403, "/commit/", PermissionError, "You have no write access to someone/model"),
        (409, "/commit/", ConnectionError, "someone/model was changed meanwhile"),
        (None, "/commit/", ConnectionError, "Push again"),
        *((500, place, ConnectionError, "Push again") for place in PLACES),
        *(pytest.param(None, place, ConnectionError, "Push again", marks=pytest.mark.slow) for place in PLACES[:-1]),
    ],
)
def test_failed_push_changes_nothing_and_can_be_repeated(
    folder: Path, hub: HubServer, place: str, status: int | None, error: type[Exception], message: str
) -> None:
    push(folder, REPO)
    before = hub.files(REPO)
    weights = load_file(next(iter(folder.glob("model-*.safetensors"))))
    save_file({name: tensor + 1 for name, tensor in weights.items()}, next(iter(folder.glob("model-*.safetensors"))))
    (folder / "LICENSE").write_text("MIT")
    hub.fail("PUT" if place == "/lfs/" else "POST", place, status=status)
    with pytest.raises(error, match=message) as failure:
        push(folder, REPO)
    assert "\n" not in str(failure.value)
    assert hub.files(REPO) == before
    hub.clear_failures()
    push(folder, REPO)
    assert len(hub.commits(REPO)) == 3
    assert hub.files(REPO)["LICENSE"] == b"MIT"


@pytest.mark.usefixtures("unchecked")
def test_interrupted_push_does_not_upload_files_again(folder: Path, hub: HubServer) -> None:
    hub.fail("POST", "/commit/")
    with pytest.raises(ConnectionError):
        push(folder, REPO)
    assert hub.files(REPO) == {}
    sent = uploads(hub)
    assert len(sent) == len(list(folder.glob("*.safetensors"))) > 1
    hub.clear_failures()
    push(folder, REPO)
    assert uploads(hub) == sent
    assert len(hub.commits(REPO)) == 2


@pytest.mark.usefixtures("unchecked")
def test_interrupted_upload_resumes_with_missing_files(folder: Path, hub: HubServer) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    oid = hashlib.sha256(shard.read_bytes()).hexdigest()
    hub.fail("PUT", oid, status=None)
    with pytest.raises(ConnectionError, match="Push again"):
        push(folder, REPO)
    hub.clear_failures()
    done = len(hub.repositories[REPO].objects)
    upload_count = len(uploads(hub))
    push(folder, REPO)
    assert len(uploads(hub)) - upload_count == len(list(folder.glob("*.safetensors"))) - done
    assert hub.files(REPO)[shard.name] == shard.read_bytes()


@pytest.mark.usefixtures("unchecked")
def test_client_retries_after_short_outage(folder: Path, hub: HubServer) -> None:
    hub.fail("PUT", "/lfs/", status=503, times=2)
    hub.fail("POST", "/preupload/", status=None, times=1)
    push(folder, REPO)
    assert len(hub.commits(REPO)) == 2


@pytest.mark.usefixtures("unchecked")
def test_lost_commit_response_makes_no_second_commit(folder: Path, hub: HubServer) -> None:
    hub.fail("POST", "/commit/", status=None, times=1, after=True)
    with pytest.raises(ConnectionError, match="Push again"):
        push(folder, REPO)
    assert len(hub.commits(REPO)) == 2
    push(folder, REPO)
    assert len(hub.commits(REPO)) == 2


@pytest.mark.usefixtures("unchecked")
def test_concurrent_commit_is_not_overwritten(folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create(REPO)
    create_commit = huggingface_hub.HfApi.create_commit

    def too_late(*args: object, **kwargs: object) -> object:
        hub.commit(REPO, {"config.json": b"theirs"})
        return create_commit(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", too_late)
    with pytest.raises(ConnectionError, match=r"someone/model.*changed.*meanwhile"):
        push(folder, REPO)
    assert hub.files(REPO) == {"config.json": b"theirs"}


@pytest.mark.usefixtures("unchecked")
def test_missing_write_permission_is_reported(folder: Path, hub: HubServer) -> None:
    with pytest.raises(PermissionError, match="hf auth login"):
        push(folder, REPO, token="hf_unknown")
    with pytest.raises(PermissionError, match=r"You.*write.*someone/model"):
        push(folder, REPO, token=hub.read_token)
    with pytest.raises(PermissionError, match=r"You.*write.*else/model"):
        push(folder, "else/model")
    assert not hub.repositories
    hub.create(REPO)
    with pytest.raises(PermissionError, match=r"You.*write.*someone/model"):
        push(folder, REPO, token=hub.read_token)
    assert hub.files(REPO) == {}


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [("model", "someone/model"), ("a/b/c", "Repo id must be"), ("someone/x y", "Repo id must use"), ("a/b--c", "--")],
)
def test_invalid_repository_name_is_refused_first(hub: HubServer, repo_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        push("missing", repo_id)  # the folder is not looked at
    assert hub.requests == []


@pytest.mark.usefixtures("unchecked")
def test_offline_mode_is_reported(folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push(folder, REPO)


# --- On the command line ---------------------------------------------------------------------------------------------


def trivium(*arguments: str | Path) -> tuple[int, str, str]:
    """Return the exit code, standard output, and standard error without colors."""
    result = CliRunner().invoke(app, ["push", *map(str, arguments)], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, re.sub(r"\x1b\[[\d;]*m", "", result.stderr)


def test_command_checks_previews_and_publishes(hub: HubServer, tmp_path: Path, tokenizer: TriviumTokenizer) -> None:
    language_model = tiny_model(TriviumForCausalLM, vocab_size=len(tokenizer), encoder_layers=0)
    folder = save(tmp_path / "run", language_model, tokenizer)
    code, output, errors = trivium(folder, REPO, "--private", "--message", "From the shell")
    assert code == 0, errors
    assert hub.repositories[REPO].private
    assert hub.commits(REPO)[0].title == "From the shell"
    assert re.search(r"model.safetensors +│ +[\d.]+ kB", output)
    assert f"{hub.url}/{REPO}" in output
    assert f'model = transformers.AutoModelForCausalLM.from_pretrained("{REPO}", trust_remote_code=True)\n' in output
    assert f'tokenizer = transformers.AutoTokenizer.from_pretrained("{REPO}", trust_remote_code=True)\n' in output


@pytest.mark.usefixtures("unchecked")
def test_dry_run_of_command_lists_changes(folder: Path, hub: HubServer) -> None:
    code, output, _ = trivium(folder, REPO, "--dry-run")
    assert code == 0
    assert f"Nothing was uploaded. These files would be pushed to {REPO}, branch main, in a new repository." in output
    assert not hub.repositories
    assert "no new commit" not in trivium(folder, REPO, "--public", "--revision", "trial")[1]
    code, output, _ = trivium(folder, REPO, "--revision", "trial")
    assert code == 0
    assert "there is no new commit" in output
    assert ', revision="trial")' in output


@pytest.mark.usefixtures("unchecked")
def test_command_reports_user_errors_in_one_line(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [(["nowhere", REPO], "nowhere is not a saved model"), ([folder, "a/b/c"], "Repo id must be")]
    attempts += [([folder, "else/x"], "You have no write access to else/x")]
    for arguments, message in attempts:
        code, _, errors = trivium(*arguments)
        assert code == 1
        assert message in errors
        assert "Traceback" not in errors
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    code, _, errors = trivium(folder, REPO)
    assert code == 1
    assert "log in with `hf auth login`, or set HF_TOKEN" in errors
    assert errors.count("Error: ") == 1
