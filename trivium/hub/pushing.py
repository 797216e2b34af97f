"""Sending a saved model to the Hub: what goes into the one commit, and what it means when that fails."""

import fnmatch
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, run_as_future
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from trivium.hub.card import CARD_FILE, has_own_card, render_card
from trivium.hub.checking import WEIGHTS, WEIGHTS_INDEX, check_folder, code_of, weights_of
from trivium.hub.public import public_recipe
from trivium.hub.space import PAGE
from trivium.recipe import load_recipe
from trivium.storage.checkpoints import STATE_FILE
from trivium.storage.manifest import ROOM
from trivium.storage.names import RECIPE_FILE

logger = logging.getLogger(__name__)

# What is published, beside the weights: never checkpoints, optimizer states, logs or texts.
PUBLISHED_MODEL = (
    *("config.json", "generation_config.json", "*.py"),
    *("*tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.spm"),
    *("*.jinja", "additional_chat_templates/*.jinja"),
)
PUBLISHED_RUN = (CARD_FILE, "LICENSE*", "*.png", "*.svg", RECIPE_FILE, "evaluation_*.json", STATE_FILE)
# What `from_pretrained` would find of an earlier model, if it stayed where the new one has none.
REPLACED = (
    *("model.safetensors", "model-*-of-*.safetensors", WEIGHTS_INDEX),
    *("generation_config.json", "target_tokenizer.json", "chat_template.jinja"),
)


@dataclass(frozen=True)
class Push:
    """One commit on the Hub, planned or made.

    Attributes:
        repo_id: The repository.
        revision: The branch.
        files: What the commit brings, by the names in the repository; unchanged files are not sent.
        deletions: What an earlier model left there and this one has not.
        head: The commit that it follows; None where the repository is new.
        creates: What has to be made first: "repository", "branch" or None.
        private: Whether a new repository is to be private; None leaves it to the namespace's settings.
        repo_type: "model" or "space".
        commit: Its id, once it is made; `head` if there was nothing to change.
    """

    repo_id: str
    revision: str
    files: dict[str, Path | bytes]
    deletions: list[str]
    head: str | None
    creates: str | None
    private: bool | None
    repo_type: str = "model"
    commit: str | None = None

    def size_of(self, name: str) -> int:
        """How many bytes a file has."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    @property
    def url(self) -> str:
        """Where people look at it."""
        place = f"spaces/{self.repo_id}" if self.repo_type == "space" else self.repo_id
        return f"{constants.ENDPOINT}/{place}" + ("" if self.revision == "main" else f"/tree/{self.revision}")

    @property
    def changed(self) -> bool:
        """Whether there is a new commit."""
        return self.commit not in (None, self.head)


def plan(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Push:
    """Look at a folder and at the repository, and say what `push` would do; write nothing.

    Raises:
        ValueError: The name is not one that a repository can have, or the repository is not as private as wanted.
        PermissionError: The Hub does not know the user.
        ConnectionError: The Hub cannot be reached.
    """
    revision = revision or "main"
    files = published_files(folder)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        found = _look(repo_id, "model", revision, private, token, copy)
        if not has_own_card(folder):
            if has_own_card(copy):  # somebody wrote it on the Hub: it stays
                files.pop(CARD_FILE, None)
            else:
                files |= render_card(folder, repo_id)
        stale: set[str] = set()
        with suppress(ValueError):  # what is broken there can be replaced, too
            stale |= found.files & code_of(copy)
    stale |= {name for name in found.files if any(fnmatch.fnmatch(name, pattern) for pattern in REPLACED)}
    stale = {name for name in stale - set(files) if "/" not in name}
    return Push(repo_id, revision, files, sorted(stale), found.head, found.creates, private)


def plan_space(folder: Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> Push:
    """Look at a Space's folder, as `write_space` wrote it, and at the Space, and say what `send` would do.

    A README.md that a person wrote on the Hub stays; what an earlier version of the page left goes.

    Raises:
        ValueError: As `plan`.
        PermissionError: As `plan`.
        ConnectionError: As `plan`.
    """
    files: dict[str, Path | bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            files[name.as_posix()] = path  # caches are there when somebody has started the page
    with tempfile.TemporaryDirectory() as copy:
        found = _look(repo_id, "space", "main", private, token, Path(copy))
        if has_own_card(Path(copy)):
            files.pop(CARD_FILE, None)
    stale = {known for known in found.files if known.startswith(f"{PAGE}/")} - set(files)
    return Push(repo_id, "main", files, sorted(stale), found.head, found.creates, private, "space")


def published_files(folder: Path) -> dict[str, Path | bytes]:
    """Return the files of a saved model or a run that may be published, by their names.

    Raises:
        ValueError: The folder has no weights as safetensors, or its recipe cannot be read.
    """
    weights = weights_of(folder)
    names = [*weights, *([] if WEIGHTS in weights else [WEIGHTS_INDEX])]
    files = {name: folder / name for name in names} | _matching(folder, PUBLISHED_MODEL)
    return {**files, **_files_of_run(folder)}


def published_checkpoint(checkpoint: Path) -> dict[str, Path | bytes]:
    """Return the files that may be published while a run goes on: a checkpoint's, and what its run says of the model.

    Evaluations are not among them, which are of other weights, nor is a generated card.

    Raises:
        ValueError: As `published_files`.
    """
    run = checkpoint.parent
    about = {name: content for name, content in _files_of_run(run).items() if not name.startswith("evaluation_")}
    if not has_own_card(run):
        about.pop(CARD_FILE, None)
    return {**about, **published_files(checkpoint)}


def _files_of_run(folder: Path) -> dict[str, Path | bytes]:
    """Return what a run tells of its model, without the folders of this machine."""
    files: dict[str, Path | bytes] = {**_matching(folder, PUBLISHED_RUN)}
    if RECIPE_FILE in files:
        files[RECIPE_FILE] = public_recipe(load_recipe(folder)).encode()
    if STATE_FILE in files:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if best := state.get("best_model_checkpoint"):
            content = {**state, "best_model_checkpoint": Path(best).name}
            files[STATE_FILE] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    return files


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in found}


@dataclass(frozen=True)
class _Repository:
    """What there is already."""

    head: str | None
    creates: str | None
    files: frozenset[str] = frozenset()


def _look(
    repo_id: str, repo_type: str, revision: str, private: bool | None, token: str | None, copy: Path
) -> _Repository:
    """See what a repository has, and fetch its card and its code into the folder `copy`; refuse a name or a wish."""
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(
            f"repo_id is {repo_id!r}: it takes a user or an organisation, too, as in 'someone/{repo_id}'."
        )
    api = HfApi(token=token, library_name="trivium")
    with _mistakes_explained(api, repo_id):
        try:
            refs = api.list_repo_refs(repo_id, repo_type=repo_type)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # it may exist, but not for who is not logged in
                raise
            return _Repository(head=None, creates="repository")
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        head = branches.get(revision) or branches["main"]
        info = (api.space_info if repo_type == "space" else api.model_info)(repo_id, revision=head)
        wanted = [CARD_FILE, "config.json", "tokenizer_config.json", "*.py"]
        api.snapshot_download(repo_id, repo_type=repo_type, revision=head, allow_patterns=wanted, local_dir=copy)
    if info.private is not None and private not in (None, info.private):
        raise ValueError(
            f"{repo_id} is there already and {'private' if info.private else 'public'}: change that in its "
            "settings on the Hub."
        )
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    return _Repository(head, None if revision in branches else "branch", files)


# --- Sending it ------------------------------------------------------------------------------------------------------


def send(planned: Push, *, message: str | None = None, token: str | None = None) -> Push:
    """Make what was planned: the repository or the branch if need be, then one commit, whole or not at all.

    Raises:
        PermissionError: The Hub does not know the user, or does not let them write there.
        ConnectionError: Somebody else pushed meanwhile, or the Hub could not be reached, or refused.
    """
    api = HfApi(token=token, library_name="trivium")
    repo_id, revision, head = planned.repo_id, planned.revision, planned.head
    repo_type = planned.repo_type
    with _mistakes_explained(api, repo_id):
        if planned.creates == "repository":
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=planned.private)
            head = api.repo_info(repo_id, repo_type=repo_type).sha
        if planned.creates and revision != "main":
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, revision=head)
        # Not `upload_folder`: it makes several commits of a large folder.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(planned.files.items())),
                *(CommitOperationDelete(name) for name in planned.deletions),
            ],
            repo_type=repo_type,
            commit_message=message or f"Upload {repo_type} with trivium",
            revision=revision,
            parent_commit=head,
        )
    return replace(planned, head=head, commit=commit.oid)


def push(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    trust_remote_code: bool = False,
) -> Push:
    """Check a saved model and publish it on the Hub, in one commit.

    What of an earlier model is left in the repository goes, everything else in it stays. After an interruption the
    same call sends what is missing; a folder that is there already makes no commit. The folder itself is not changed:
    a model card is made for the commit, unless a person wrote one.

    Args:
        folder: What `model.save_pretrained` and `tokenizer.save_pretrained` wrote, or a run's.
        repo_id: "name/of-the-model", with the name of a user or an organisation.
        private: Whether others may see a repository that is new; None leaves it to the namespace's settings.
        revision: The branch; "main" by default. A new one starts where "main" is.
        message: The first line of the commit.
        token: By default who is logged in with `hf auth login`, or HF_TOKEN.
        dry_run: Check and plan, but write nothing.
        trust_remote_code: Whether the check may run code in the folder that is not the installed package's.

    Returns:
        What was done; with `dry_run`, what would be.

    Raises:
        ValueError: The folder or a name will not do.
        PermissionError: The Hub does not know the user, or does not let them write there.
        ConnectionError: Somebody else pushed meanwhile, or the Hub could not be reached, or refused.
    """
    check_folder(Path(folder), trust_remote_code=trust_remote_code)
    planned = plan(Path(folder), repo_id, private=private, revision=revision, token=token)
    return planned if dry_run else send(planned, message=message, token=token)


def send_in_background(planned: Push, run: Path, *, message: str, token: str | None = None) -> Future[None]:
    """Send while training goes on; a push that fails is logged, and training goes on.

    Pushes are sent one after the other.

    Args:
        planned: What to send.
        run: The folder of the run. Until all is sent it holds hard links to the files, which may be deleted meanwhile.
        message: The first line of the commit.
        token: As `send`.
    """
    room = run / ROOM
    room.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="push-", dir=room))
    files: dict[str, Path | bytes] = {}
    for name, content in planned.files.items():
        if isinstance(content, bytes):
            files[name] = content
            continue
        kept = folder / name.replace("/", "--")
        try:
            os.link(content, kept)
        except OSError:  # not every file system has links
            shutil.copy(content, kept)
        files[name] = kept

    def send_and_clean() -> None:
        try:
            send(replace(planned, files=files), message=message, token=token)
        except (OSError, ValueError) as error:
            logger.warning("%r was not pushed to %s: %s", message, planned.repo_id, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run_as_future(send_and_clean)


@contextmanager
def _mistakes_explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Say what to do about what the client raises."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except (HTTPError, RuntimeError, OSError) as error:  # RuntimeError: around what happened to an upload
        cause: BaseException | None = error
        while cause and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        said = (isinstance(cause, HfHubHTTPError) and cause.server_message) or str(error.__cause__ or error)
        said = " ".join(said.split())
        if status == 401:
            raise PermissionError(
                f"{api.endpoint} does not know you: log in with `hf auth login`, or set HF_TOKEN to a token that may "
                "write."
            ) from error
        if status == 403 or isinstance(error, PermissionError):
            raise PermissionError(
                f"You may not write to {repo_id}: it is not yours, or your token may only read ({said})."
            ) from error
        if status in (409, 412):
            raise ConnectionError(
                f"Somebody else has changed {repo_id} meanwhile ({said}); nothing was committed. Look at what they "
                "did, and run the same again to put yours on top."
            ) from error
        if status is not None and status < 500 and status != 429:
            raise ConnectionError(f"{api.endpoint} refuses: {said}") from error
        raise ConnectionError(
            f"{api.endpoint} cannot be reached or does not answer as it should ({said}). Run the same again: what has "
            "arrived already is not sent twice, and the repository stays as it was until all has."
        ) from error
