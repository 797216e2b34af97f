"""A Hub server on loopback that implements the part of the HTTP API that the huggingface_hub client uses.

It keeps everything in memory. Its responses contain the fields that the client reads (`hf_api.py`, `_commit_api.py`,
`lfs.py` and `file_download.py` of huggingface_hub). It has no Xet storage, so clients must set HF_HUB_DISABLE_XET=1:
the fixture `hub` does this in the test process, and `HubServer.environment` for other processes. To run it as a
program:

    python tests/helpers/hub_server.py --port 8765
"""

import argparse
import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import Commit, File, Json, Refusal, Repository

USER = "someone"
DATE = "2025-01-01T00:00:00.000Z"
GIT_ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("bin", "safetensors", "pt", "pth", "pkl", "npz")
)


class Request(NamedTuple):
    method: str
    path: str


@dataclass
class Failure:
    method: str
    path: str
    status: int | None
    times: int
    after: bool


class HubServer:
    """HTTP server of the Hub; used as a context manager, it runs in a thread.

    Attributes:
        url: Address of the server, for HF_ENDPOINT.
        token: The write token of the user "someone", for someone/...
        read_token: A read-only token of the same user.
        requests: All requests so far, in order.
    """

    token = "hf_writes"
    read_token = "hf_reads"

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self._failures: list[Failure] = []
        self._lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.05)

    # --- For tests ---------------------------------------------------------------------------------------------------

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment variables for a process that uses this Hub and keeps its caches in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """Create a repository with the initial commit that the Hub makes."""
        repository = self.repositories[repo_id] = Repository(repo_id, private)
        repository.commit("main", {".gitattributes": File(GIT_ATTRIBUTES.encode())}, "initial commit")
        return repository

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision, except the initial .gitattributes."""
        files = self.repositories[repo_id].at(revision).files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Return the commits of a revision, newest first, down to the initial commit."""
        commit: Commit | None = self.repositories[repo_id].at(revision)
        history = []
        while commit:
            history.append(commit)
            commit = commit.parent
        return history

    def commit(self, repo_id: str, files: Mapping[str, bytes | None], branch: str = "main") -> Commit:
        """Commit as a different user; a value of None deletes the file."""
        changes = {path: None if content is None else File(content) for path, content in files.items()}
        return self.repositories[repo_id].commit(branch, changes, "another user's commit")

    def fail(
        self, method: str, path: str, *, status: int | None = 500, times: int = 1_000_000, after: bool = False
    ) -> None:
        """Make matching requests fail from now on.

        Args:
            method: The HTTP method to match.
            path: A substring of the path to match.
            status: The status of the response; None closes the connection in the middle of the request body.
            times: The number of requests that fail.
            after: Whether to process the request first, so that only the response is lost.
        """
        self._failures.append(Failure(method, path, status, times, after))

    def clear_failures(self) -> None:
        """Remove all configured failures."""
        self._failures.clear()

    # --- For the handler ---------------------------------------------------------------------------------------------

    def failure_of(self, request: Request) -> Failure | None:
        """Return the failure configured for a request, if any, and decrement its remaining count."""
        with self._lock:
            for failure in self._failures:
                if failure.method == request.method and failure.path in request.path and failure.times > 0:
                    failure.times -= 1
                    return failure
        return None

    def answer(self, request: Request, handler: "Handler", body: bytes) -> "Answer":
        """Dispatch a request to its route, one at a time."""
        path = urlsplit(request.path).path.replace("/api/spaces/", "/api/models/spaces/")
        for method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if request.method == "HEAD" else request.method):
                with self._lock:
                    return route(
                        self, handler, body, **{name: unquote(part) for name, part in match.groupdict("").items()}
                    )
        raise Refusal(404, f"Sorry, we can't find the page {request.path}.")


class Answer(NamedTuple):
    body: bytes
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """HTTP handler: parse a request, pass it to the hub, and write the response."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    # Send headers and body together: a separate body would be delayed by 40 ms, until a delayed ACK arrives.
    disable_nagle_algorithm = True

    def handle_request(self) -> None:
        request = Request(self.command, self.path)
        self.hub.requests.append(request)
        failure = self.hub.failure_of(request)
        if failure and failure.status is None and not failure.after:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        body = b"".join(self._read())
        try:
            if failure and not failure.after:
                raise Refusal(failure.status or 500, "made to fail")
            answer = self.hub.answer(request, self, body)
            if failure and failure.status is None:
                self.close_connection = True
                return
            if failure:
                raise Refusal(failure.status or 500, "made to fail")
            self._write(200, answer)
        except Refusal as refusal:
            self._write(refusal.status, Answer(refusal.body, refusal.headers))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _read(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _write(self, status: int, answer: Answer) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, *arguments: object) -> None:
        """Suppress logging: `HubServer.requests` records all requests."""

    # --- Authentication and access -----------------------------------------------------------------------------------

    @property
    def token(self) -> str | None:
        """Return the token of the request, or None."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (self.hub.token, self.hub.read_token):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return token or None

    def readable(self, repo_id: str) -> Repository:
        """Return a repository; refuse clients that may not read it."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self.token):
            status, message = (404, "Repository not found") if self.token else (401, "Invalid username or password.")
            raise Refusal(status, message, "RepoNotFound")
        return repository

    def writable(self, repo_id: str) -> Repository:
        """Return a repository; refuse clients that may not write to it."""
        repository = self.readable(repo_id)
        self.check_writer(repo_id.split("/")[-2])
        return repository

    def check_writer(self, namespace: str) -> None:
        """Reject a client that may not write to a namespace."""
        if self.token is None:
            raise Refusal(401, "Invalid username or password.")
        if self.token != self.hub.token or namespace != USER:
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace!r}")


# --- Routes ----------------------------------------------------------------------------------------------------------

Route = Callable[..., Answer]
ROUTES: list[tuple[str, str, Route]] = []
REPO = r"(?P<repo_id>(?:spaces/)?[\w.-]+/[\w.-]+)"
API = rf"/api/models/{REPO}"
REVISION = r"(?P<revision>[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def add(function: Route) -> Route:
        ROUTES.append((method, pattern, function))
        return function

    return add


def as_json(content: Any) -> Answer:
    return Answer(json.dumps(content).encode(), {"Content-Type": "application/json"})


@route("GET", "/api/whoami-v2")
def whoami(hub: HubServer, handler: Handler, body: bytes) -> Answer:
    if handler.token is None:
        raise Refusal(401, "Invalid username or password.")
    role = "write" if handler.token == hub.token else "read"
    access = {"displayName": "of the tests", "role": role}
    return as_json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token", "accessToken": access}})


@route("POST", "/api/validate-yaml")
def validate_card(hub: HubServer, handler: Handler, body: bytes) -> Answer:
    content = json.loads(body)["content"]
    missing = [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
    return as_json({"errors": [], "warnings": missing})


@route("POST", "/api/repos/create")
def create_repository(hub: HubServer, handler: Handler, body: bytes) -> Answer:
    wanted = json.loads(body)
    repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
    handler.check_writer(repo_id.split("/")[0])
    if wanted.get("type") == "space":
        if not wanted.get("sdk"):
            raise Refusal(400, "A Space needs an sdk.")
        repo_id = f"spaces/{repo_id}"
    url = f"{hub.url}/{repo_id}"
    if repo_id in hub.repositories:
        raise Refusal(409, "You already created this model repo", url=url)
    hub.create(repo_id, private=wanted.get("private") or wanted.get("visibility") == "private")
    return as_json({"url": url, "name": repo_id})


@route("GET", API)
@route("GET", rf"{API}/revision/{REVISION}")
def model_info(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str = "main") -> Answer:
    repository = handler.readable(repo_id)
    commit = repository.at(revision)
    card = commit.files.get("README.md", File(b"")).content.decode()
    pipeline_tag = re.search(r"^pipeline_tag: *(\S+)$", card, flags=re.MULTILINE)
    return as_json(
        {
            **{"_id": repo_id, "id": repo_id, "modelId": repo_id, "author": USER, "sha": commit.id},
            **{"private": repository.private, "gated": False, "disabled": False, "tags": [], "lastModified": DATE},
            **({"pipeline_tag": pipeline_tag.group(1)} if pipeline_tag else {}),
            "siblings": [{"rfilename": path} for path in commit.files],
        }
    )


@route("GET", rf"{API}/refs")
def list_refs(hub: HubServer, handler: Handler, body: bytes, repo_id: str) -> Answer:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id}
        for name, commit in handler.readable(repo_id).branches.items()
    ]
    return as_json({"branches": branches, "converts": [], "tags": []})


@route("GET", rf"{API}/commits/{REVISION}")
def list_commits(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    handler.readable(repo_id).at(revision)
    authors = [{"user": USER}]
    history = hub.commits(repo_id, revision)
    return as_json([{"id": c.id, "title": c.title, "message": "", "authors": authors, "date": DATE} for c in history])


@route("POST", rf"{API}/branch/{REVISION}")
def create_branch(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    repository = handler.writable(repo_id)
    if revision in repository.branches:
        raise Refusal(409, f"Reference already exists: {revision}")
    repository.branches[revision] = repository.at(json.loads(body).get("startingPoint", "main"))
    return as_json({})


def folders_of(path: str) -> list[str]:
    return [str(parent) for parent in Path(path).parents][:-1]


@route("GET", rf"{API}/tree/{REVISION}(/(?P<folder>.+))?")
def list_tree(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str, folder: str = "") -> Answer:
    files = handler.readable(repo_id).at(revision).files
    inside = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
    if folder and not inside:
        raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
    folders = {parent for path in inside for parent in folders_of(path)} - {folder, *folders_of(folder)}
    entries: list[Json] = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
    entries += [file.tree_entry(path) for path, file in inside.items()]
    if parse_qs(urlsplit(handler.path).query).get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = [entry for entry in entries if (folders_of(entry["path"]) or [""])[0] == folder]
    return as_json(entries)


@route("POST", rf"{API}/paths-info/{REVISION}")
def list_paths(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    files = handler.readable(repo_id).at(revision).files
    wanted = parse_qs(body.decode())["paths"]
    return as_json([files[path].tree_entry(path) for path in wanted if path in files])


@route("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str, path: str) -> Answer:
    commit = handler.readable(repo_id).at(revision)
    if path not in commit.files:
        raise Refusal(404, "Entry not found", "EntryNotFound", commit=commit.id)
    file = commit.files[path]
    return Answer(file.content, {"X-Repo-Commit": commit.id, "ETag": f'"{file.oid}"'})


@route("POST", rf"{API}/preupload/{REVISION}")
def preupload(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    repository = handler.writable(repo_id)
    existing = repository.at(revision).files
    answers: list[Json] = []
    wanted = json.loads(body)
    ignored = wanted.get("gitIgnore") or existing.get(".gitignore", File(b"")).content.decode()
    for file in wanted["files"]:
        large = repository.is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        should_ignore = any(fnmatch.fnmatch(Path(file["path"]).name, pattern) for pattern in ignored.splitlines())
        answer = {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": should_ignore,
        }
        known = {"oid": existing[file["path"]].oid} if file["path"] in existing else {}
        answers.append({**answer, **known})
    return as_json({"files": answers})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubServer, handler: Handler, body: bytes, repo_id: str) -> Answer:
    repository = handler.writable(repo_id)
    objects: list[Json] = []
    for wanted in json.loads(body)["objects"]:
        oid = wanted["oid"]
        actions = {
            "upload": {"href": f"{hub.url}/lfs/{repo_id}/{oid}"},
            "verify": {"href": f"{hub.url}/{repo_id}.git/info/lfs/verify"},
        }
        objects.append({**wanted, **({} if oid in repository.objects else {"actions": actions})})
    return as_json({"transfer": "basic", "objects": objects})


@route("PUT", rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})")
def lfs_upload(hub: HubServer, handler: Handler, body: bytes, repo_id: str, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refusal(400, "The content does not match its SHA-256.")
    hub.repositories[repo_id].objects[oid] = body
    return Answer(b"", {})


@route("POST", rf"/{REPO}\.git/info/lfs/verify")
def lfs_verify(hub: HubServer, handler: Handler, body: bytes, repo_id: str) -> Answer:
    wanted = json.loads(body)
    if len(handler.writable(repo_id).objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refusal(404, "Object not found")
    return as_json({})


@route("POST", rf"{API}/commit/{REVISION}")
def make_commit(hub: HubServer, handler: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    repository = handler.writable(repo_id)
    if revision not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    head = repository.branches[revision]
    title = ""
    changes: dict[str, File | None] = {}
    for line in map(json.loads, body.splitlines()):
        key, value = line["key"], line["value"]
        if key == "header":
            title = value["summary"]
            if not head.id.startswith(value.get("parentCommit", "")):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            changes[value["path"]] = File(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repository.objects:
                raise Refusal(
                    400, "Your push was rejected because an LFS pointer pointed to a file that does not exist."
                )
            changes[value["path"]] = File(repository.objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if value["path"] not in head.files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            changes[value["path"]] = None
        elif key == "deletedFolder":
            folder = value["path"].rstrip("/") + "/"
            changes |= {path: None for path in head.files if path.startswith(folder)}
        else:
            raise Refusal(400, f"Unknown operation {key!r}")
    commit = repository.commit(revision, changes, title)
    return as_json({"success": True, "commitOid": commit.id, "commitUrl": f"{hub.url}/{repo_id}/commit/{commit.id}"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a Hub on the loopback interface, in memory.")
    parser.add_argument("--port", type=int, default=8765)
    server = HubServer(parser.parse_args().port)
    print(f"HF_ENDPOINT={server.url} HF_TOKEN={server.token} HF_HUB_DISABLE_XET=1", flush=True)
    server.serve()
