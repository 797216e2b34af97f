"""In-memory repositories of the test Hub: files, commits and branches."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGEST_REGULAR_FILE = 10 * 1024 * 1024

Json = dict[str, Any]


class Refusal(Exception):
    """Raised to send an error response; the client chooses its exception class by the headers."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str = "", url: str = "") -> None:
        super().__init__(message)
        self.status = status
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in headers.items() if value}
        self.body = json.dumps({"error": message, "url": url}).encode()


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        """Return the hash by which the client detects changes: SHA-256 for LFS files, else the git blob hash."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def tree_entry(self, path: str) -> Json:
        """Return the JSON entry of the file in a tree listing."""
        lfs = {"lfs": {"oid": self.oid, "size": len(self.content), "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.oid, **lfs}


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot of a repository."""

    id: str
    title: str
    files: Mapping[str, File]
    parent: "Commit | None" = None


@dataclass
class Repository:
    id: str
    private: bool
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    # LFS files keyed by SHA-256. They are uploaded before the commit that refers to them.
    objects: dict[str, bytes] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """Return the commit that a branch or a commit id refers to."""
        commit = self.branches.get(revision) or self.commits.get(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, branch: str, changes: Mapping[str, File | None], title: str) -> Commit:
        """Create a commit on a branch; a value of None deletes the file."""
        parent = self.branches.get(branch)
        files = {**(parent.files if parent else {}), **changes}
        kept = {path: file for path, file in sorted(files.items()) if file is not None}
        seed = [len(self.commits), title, *((path, file.oid) for path, file in kept.items())]
        commit = Commit(hashlib.sha1(repr(seed).encode()).hexdigest(), title, kept, parent)
        self.commits[commit.id] = self.branches[branch] = commit
        return commit

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Return True if a file belongs in LFS: by .gitattributes, by size, or because it is binary."""
        attributes = self.branches["main"].files[".gitattributes"].content.decode().splitlines()
        patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]
        by_name = any(fnmatch.fnmatch(Path(path).name, pattern) for pattern in patterns)
        return by_name or size > LARGEST_REGULAR_FILE or b"\0" in sample
