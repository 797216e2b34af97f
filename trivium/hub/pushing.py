"""Push a saved model or a Space to the Hub in a single commit, and explain the Hub client's errors."""

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

# Files that are published in addition to the weights: no checkpoints, optimizer states, logs or texts.
PUBLISHED_MODEL = (
    "config.json",
    "generation_config.json",
    "*.py",
    "*tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.spm",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
PUBLISHED_RUN = (CARD_FILE, "LICENSE*", "*.png", "*.svg", RECIPE_FILE, "evaluation_*.json", STATE_FILE)
# Files of an earlier model that `from_pretrained` would read; deleted if the new model does not contain them.
REPLACED = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    WEIGHTS_INDEX,
    "generation_config.json",
    "target_tokenizer.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Push:
    """A planned or created commit on the Hub.

    Attributes:
        repo_id: The repository.
        revision: The branch.
        files: Files of the commit, keyed by their paths in the repository; unchanged files are not uploaded.
        deletions: Stale files of an earlier model to delete.
        head: The parent commit; None for a new repository.
        creates: Object to create first: "repository", "branch" or None.
        private: Whether a new repository is private; None for the default of the namespace.
        repo_type: "model" or "space".
        commit: The id of the created commit; `head` if there was nothing to change.
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
        """Return the size of a file in bytes."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    @property
    def url(self) -> str:
        """Return the URL of the page on the Hub."""
        path = f"spaces/{self.repo_id}" if self.repo_type == "space" else self.repo_id
        return f"{constants.ENDPOINT}/{path}" + ("" if self.revision == "main" else f"/tree/{self.revision}")

    @property
    def changed(self) -> bool:
        """Return True if a new commit was created."""
        return self.commit not in (None, self.head)


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError if `repo_id` is not of the form "owner/name"."""
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(
            f"repo_id is {repo_id!r}, but must name a user or an organization, too, as in 'someone/{repo_id}'."
        )


def plan(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Push:
    """Compare a folder with the repository, and return what `push` would do, without writing anything.

    With `offline`, do not contact the Hub, and plan for a new repository.

    Raises:
        ValueError: `repo_id` is invalid, or the visibility of the repository differs from `private`.
        PermissionError: The user is not authenticated.
        ConnectionError: The Hub cannot be reached.
    """
    check_repo_id(repo_id)
    revision = revision or "main"
    files = published_files(folder)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        found = _Repository(None, "repository")
        if not offline:
            found = _inspect(repo_id, "model", revision, private, token, copy)
        if not has_own_card(folder):
            if has_own_card(copy):  # keep a card that was written on the Hub
                files.pop(CARD_FILE, None)
            else:
                files |= render_card(folder, repo_id)
        stale: set[str] = set()
        with suppress(ValueError):  # allows replacing a broken model on the Hub
            stale |= found.files & code_of(copy)
    stale |= {name for name in found.files if any(fnmatch.fnmatch(name, pattern) for pattern in REPLACED)}
    stale = {name for name in stale - set(files) if "/" not in name}
    return Push(repo_id, revision, files, sorted(stale), found.head, found.creates, private)


def plan_space(folder: Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> Push:
    """Compare a folder written by `write_space` with the Space, and return what `send` would do.

    A hand-written README.md on the Hub is kept; stale files of an earlier version of the page are deleted.

    Raises:
        ValueError: As in `plan`.
        PermissionError: As in `plan`.
        ConnectionError: As in `plan`.
    """
    check_repo_id(repo_id)
    files: dict[str, Path | bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            files[name.as_posix()] = path  # running the page locally leaves caches
    with tempfile.TemporaryDirectory() as copy:
        found = _inspect(repo_id, "space", "main", private, token, Path(copy))
        if has_own_card(Path(copy)):
            files.pop(CARD_FILE, None)
    stale = {path for path in found.files if path.startswith(f"{PAGE}/")} - set(files)
    return Push(repo_id, "main", files, sorted(stale), found.head, found.creates, private, "space")


def published_files(folder: Path) -> dict[str, Path | bytes]:
    """Return the files of a saved model or a run that can be published, keyed by file name.

    Raises:
        ValueError: The folder has no weights as safetensors, or its recipe cannot be read.
    """
    weights = weights_of(folder)
    names = [*weights, *([] if WEIGHTS in weights else [WEIGHTS_INDEX])]
    files = {name: folder / name for name in names} | _matching(folder, PUBLISHED_MODEL)
    return {**files, **_files_of_run(folder)}


def published_checkpoint(checkpoint: Path) -> dict[str, Path | bytes]:
    """Return the files of a checkpoint and its run that can be published during training.

    Evaluations are excluded because they were computed with other weights. A generated card is excluded as well.

    Raises:
        ValueError: As in `published_files`.
    """
    run = checkpoint.parent
    run_files = {name: content for name, content in _files_of_run(run).items() if not name.startswith("evaluation_")}
    if not has_own_card(run):
        run_files.pop(CARD_FILE, None)
    return {**run_files, **published_files(checkpoint)}


def _files_of_run(folder: Path) -> dict[str, Path | bytes]:
    """Return the files of a run that can be published, without local paths."""
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
    """Current state of a repository: its head commit and files, and whether it or its branch is missing."""

    head: str | None
    creates: str | None
    files: frozenset[str] = frozenset()


def _inspect(
    repo_id: str, repo_type: str, revision: str, private: bool | None, token: str | None, copy: Path
) -> _Repository:
    """Return the state of a repository, and download its card and code into `copy`.

    Raises:
        ValueError: As in `plan`.
    """
    api = HfApi(token=token, library_name="trivium")
    with _explain_errors(api, repo_id):
        try:
            refs = api.list_repo_refs(repo_id, repo_type=repo_type)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # the repository may exist, but be visible only after login
                raise
            return _Repository(head=None, creates="repository")
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        head = branches.get(revision) or branches["main"]
        info = (api.space_info if repo_type == "space" else api.model_info)(repo_id, revision=head)
        patterns = [CARD_FILE, "config.json", "tokenizer_config.json", "*.py"]
        api.snapshot_download(repo_id, repo_type=repo_type, revision=head, allow_patterns=patterns, local_dir=copy)
    if info.private is not None and private not in (None, info.private):
        raise ValueError(
            f"private is {private}, but {repo_id} exists and is {'private' if info.private else 'public'}: change its "
            "visibility in its settings on the Hub."
        )
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    return _Repository(head, None if revision in branches else "branch", files)


# --- Sending ---------------------------------------------------------------------------------------------------------


def send(planned: Push, *, message: str | None = None, token: str | None = None) -> Push:
    """Execute a plan: create the repository or branch if needed, then one atomic commit.

    Raises:
        PermissionError: The user is not authenticated, or has no write access.
        ConnectionError: The repository was changed in the meantime, or the Hub cannot be reached or rejects it.
    """
    api = HfApi(token=token, library_name="trivium")
    repo_id, revision, head = planned.repo_id, planned.revision, planned.head
    repo_type = planned.repo_type
    with _explain_errors(api, repo_id):
        if planned.creates == "repository":
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=planned.private)
            head = api.repo_info(repo_id, repo_type=repo_type).sha
        if planned.creates and revision != "main":
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, revision=head)
        # `upload_folder` would split a large folder into several commits.
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

    Stale files of an earlier model are deleted from the repository; all other files in it are kept. After an
    interruption the same call uploads only the missing files; an unchanged folder creates no commit. The folder itself
    is not modified: a model card is generated for the commit, unless the folder or the repository has a hand-written
    one.

    Args:
        folder: A folder written by `model.save_pretrained` and `tokenizer.save_pretrained`, or the folder of a run.
        repo_id: "owner/name"; the owner is a user or an organization.
        private: Whether a new repository is private; None for the default of the namespace.
        revision: The branch; None for "main". A new branch starts at the head of "main".
        message: The first line of the commit message.
        token: An access token; None uses HF_TOKEN or the token of `hf auth login`.
        dry_run: Check and plan, but write nothing.
        trust_remote_code: Whether the check may run code in the folder that differs from the installed package.

    Returns:
        The push that was executed or, with `dry_run`, planned.

    Raises:
        ValueError: The folder fails the check, or an argument is invalid.
        PermissionError: The user is not authenticated, or has no write access.
        ConnectionError: The repository was changed in the meantime, or the Hub cannot be reached or rejects it.
    """
    check_repo_id(repo_id)  # checking the folder takes longer
    check_folder(Path(folder), trust_remote_code=trust_remote_code)
    planned = plan(Path(folder), repo_id, private=private, revision=revision, token=token)
    return planned if dry_run else send(planned, message=message, token=token)


def send_in_background(planned: Push, run: Path, *, message: str, token: str | None = None) -> Future[None]:
    """Send in a background thread during training; a failed push is logged and does not stop training.

    Pushes are sent one after another.

    Args:
        planned: The push to send.
        run: The folder of the run. It holds hard links to the files until they are sent, so that the originals may be
            deleted.
        message: The first line of the commit message.
        token: As in `push`.
    """
    work_folder = run / ROOM
    work_folder.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="push-", dir=work_folder))
    files: dict[str, Path | bytes] = {}
    for name, content in planned.files.items():
        if isinstance(content, bytes):
            files[name] = content
            continue
        link = folder / name.replace("/", "--")
        try:
            os.link(content, link)
        except OSError:  # not every file system supports hard links
            shutil.copy(content, link)
        files[name] = link

    def send_and_clean() -> None:
        try:
            send(replace(planned, files=files), message=message, token=token)
        except (OSError, ValueError) as error:
            logger.warning("%r was not pushed to %s: %s", message, planned.repo_id, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run_as_future(send_and_clean)


@contextmanager
def _explain_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Convert exceptions of the Hub client into errors that state what to do."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except (HTTPError, RuntimeError, OSError) as error:  # RuntimeError wraps a failed upload
        cause: BaseException | None = error
        while cause and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        detail = (isinstance(cause, HfHubHTTPError) and cause.server_message) or str(error.__cause__ or error)
        detail = " ".join(detail.split())
        if status == 401:
            raise PermissionError(
                f"You are not authenticated at {api.endpoint}: log in with `hf auth login`, or set HF_TOKEN to a "
                "token with write access."
            ) from error
        if status == 403 or isinstance(error, PermissionError):
            raise PermissionError(
                f"You have no write access to {repo_id} ({detail}): use an account and a token that have it."
            ) from error
        if status in (409, 412):
            raise ConnectionError(
                f"{repo_id} was changed meanwhile by another push ({detail}); nothing was committed. Review that "
                "change, then push again to commit on top of it."
            ) from error
        if status is not None and status < 500 and status != 429:
            raise ConnectionError(f"{api.endpoint} refuses the request: {detail}") from error
        raise ConnectionError(
            f"{api.endpoint} cannot be reached, or fails to answer ({detail}). Push again: files that "
            "were uploaded are not uploaded twice, and the repository is unchanged until the commit."
        ) from error
