"""Draw docstrings and comments for a blind comparison of the prose of two or more packages.

    python docs/style_sample.py --seed 2026 --other PATH [PATH ...] --items items.md --key key.json

Draws `--docstrings` docstrings and `--comments` comments from this repository and as many from the files and folders
named by `--other`, shuffles them, and writes a numbered list without their origin and a key that maps each number to
its file and line. The names of the packages are masked in all texts. Judges read only the list and answer for each
item: would a native engineer rewrite this?

Without `--other`, only this repository is sampled; `--all` lists every item of it instead of a sample, in file order.
"""

import argparse
import ast
import io
import json
import random
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "configuration",
    "modeling",
    "tokenization",
    "trivium",
    "trivium_cli",
    "tests",
    "benchmarks",
    "recipes",
    "docs",
    "examples",
)
EXCLUDED = ("tests/fixtures/", "docs/_build/", "typings/")
MAX_LINES = 14
MIN_WORDS = 4
# Two masks, because this repository refers to transformers as another library.
MASKS = (("trivium", "zeta"), ("torchtitan", "zeta"), ("transformers'", "hublib's"), ("transformers", "hublib"))
# Skip tool directives; they are not prose.
DIRECTIVE = re.compile(
    r"#\s*(noqa|type:|pyre|pyright|ruff:|fmt:|mypy:|pragma|!|-\*-|Copied from|Adapted from|[-=#*]+\s*$)", re.I
)


class Item(NamedTuple):
    """A docstring or comment with its location."""

    kind: str
    path: str
    line: int
    text: str


def docstrings(source: str, path: str) -> list[Item]:
    """Return the docstrings of a module, its classes and its functions."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    items = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, nodes) and ast.get_docstring(node):
            items.append(Item("docstring", path, node.body[0].lineno, ast.get_docstring(node) or ""))
    return sorted(items, key=lambda item: item.line)


def comments(source: str, path: str) -> list[Item]:
    """Return the comments of a Python file; comment lines that follow each other form one comment.

    License headers, directives for tools and comments of fewer than `MIN_WORDS` words are left out.
    """
    blocks: list[tuple[int, int, bool, list[str]]] = []  # first line, last line, whether it has its own lines, texts
    first_code_line = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, alone = token.start[0], not token.line[: token.start[1]].strip()
            text = token.string.lstrip("#").strip()
            if DIRECTIVE.match(token.string) or (first_code_line is None and "icense" in source[:1500]):
                continue
            if alone and blocks and blocks[-1][2] and blocks[-1][1] == line - 1:
                first, _, _, texts = blocks.pop()
                blocks.append((first, line, True, [*texts, text]))
            else:
                blocks.append((line, line, alone, [text]))
        elif first_code_line is None and token.type not in (tokenize.NL, tokenize.ENCODING):
            first_code_line = token.start[0]
    items = [Item("comment", path, first, "\n".join(texts)) for first, _, _, texts in blocks]
    return [item for item in items if len(item.text.split()) >= MIN_WORDS]


def yaml_comments(source: str, path: str) -> list[Item]:
    """Return the full-line comments of a YAML file, joined as in Python files."""
    items: list[Item] = []
    last = -1
    for number, line in enumerate(source.splitlines(), start=1):
        if not line.lstrip().startswith("#"):
            continue
        text = line.strip().lstrip("#").strip()
        if items and last == number - 1:
            items[-1] = items[-1]._replace(text=items[-1].text + "\n" + text)
        else:
            items.append(Item("comment", path, number, text))
        last = number
    return [item for item in items if len(item.text.split()) >= MIN_WORDS]


def read_items(files: list[Path], root: Path) -> list[Item]:
    """Return the docstrings and comments of `files`, with paths relative to `root`."""
    items = []
    for file in files:
        path, source = file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            items += docstrings(source, path) + comments(source, path)
        else:
            items += yaml_comments(source, path)
    return items


def find_files(folders: list[Path]) -> list[Path]:
    """Return the Python and YAML files below `folders`, sorted; a file stands for itself."""
    files = {file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*"))}
    return sorted(file for file in files if file.suffix in (".py", ".yaml"))


def own_items() -> list[Item]:
    """Return the docstrings and comments of this repository, without fixtures and build outputs."""
    files = [file for file in find_files([ROOT / room for room in ROOMS]) if "__pycache__" not in file.parts]
    return read_items([file for file in files if not file.relative_to(ROOT).as_posix().startswith(EXCLUDED)], ROOT)


def mask(text: str) -> str:
    """Replace the packages' names, strip the dashes of dividers, and cut the text after `MAX_LINES` lines."""
    text = re.sub(r"^-{3,} *| *-{3,}$", "", text, flags=re.MULTILINE)
    for name, replacement in MASKS:
        for style in (str.lower, str.capitalize):
            text = text.replace(style(name), style(replacement))
    lines = text.splitlines()
    return "\n".join(lines if len(lines) <= MAX_LINES else [*lines[:MAX_LINES], "[...]"])


def draw(items: list[Item], counts: dict[str, int], generator: random.Random) -> list[Item]:
    """Draw `counts[kind]` items of each kind without replacement, no text twice."""
    drawn = []
    for kind, count in counts.items():
        texts = {item.text: item for item in reversed(items) if item.kind == kind}
        pool = sorted(texts.values())
        if len(pool) < count:
            raise ValueError(
                f"{count} items of kind {kind} were asked for, but there are {len(pool)}. Name more files."
            )
        drawn += generator.sample(pool, count)
    return drawn


def main() -> None:
    """Write the blind list and its key."""
    parser = argparse.ArgumentParser(description="Draw docstrings and comments for a blind comparison of prose.")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--docstrings", type=int, default=100, help="docstrings from each side (default: 100)")
    parser.add_argument("--comments", type=int, default=50, help="comments from each side (default: 50)")
    parser.add_argument("--other", type=Path, nargs="+", default=[], help="files and folders to compare with")
    parser.add_argument("--items", type=Path, default=Path("items.md"), help="the blind list to write")
    parser.add_argument("--key", type=Path, default=Path("key.json"), help="the key to write")
    parser.add_argument("--all", action="store_true", help="list every item of this repository, unmasked")
    arguments = parser.parse_args()

    if arguments.all:
        chosen = own_items()
        texts = [f"{item.path}:{item.line} {item.text}\n" for item in chosen]
        arguments.items.write_text("\n".join(texts), encoding="utf-8")
        return

    generator = random.Random(arguments.seed)
    counts = {"docstring": arguments.docstrings, "comment": arguments.comments}
    labeled = [("own", item) for item in draw(own_items(), counts, generator)]
    if arguments.other:
        others = [item for path in arguments.other for item in read_items(find_files([path]), path.parent)]
        labeled += [("other", item) for item in draw(others, counts, generator)]
    generator.shuffle(labeled)

    entries = [
        f"## {number} ({item.kind})\n\n{mask(item.text)}\n" for number, (_, item) in enumerate(labeled, start=1)
    ]
    key = {
        str(number): {"side": side, "kind": item.kind, "file": item.path, "line": item.line}
        for number, (side, item) in enumerate(labeled, start=1)
    }
    arguments.items.write_text("\n".join(entries), encoding="utf-8")
    arguments.key.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
