"""Test loading real-world files: delimiters, encodings, compression, nested columns, TMX files, and empty sides."""

import bz2
import gc
import gzip
import json
import logging
import lzma
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import datasets
import pyarrow
import pytest

from trivium.data import DataArguments, load_data
from trivium.data.columns import LABELED_TEXT, TEXT
from trivium.data.tmx import tmx_rows

EXPECTED = [{"source": "A dog.", "target": "Ein Hund."}, {"source": "Größe", "target": "Maß; „groß“"}]
eager_and_lazy = pytest.mark.parametrize("streaming", [False, True], ids=["eager", "streaming"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(train: Path | str, columns: tuple[str, ...] = ("source", "target"), **options: Any) -> list[dict[str, Any]]:
    return list(load_data(DataArguments(train=str(train), **options), columns)["train"])


def compress(path: Path, content: bytes) -> None:
    if path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes({".gz": gzip, ".xz": lzma, ".bz2": bz2}[path.suffix].compress(content))


# --- Delimiters and encodings ----------------------------------------------------------------------------------------


@eager_and_lazy
def test_delimiter_of_a_table(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "a.csv").write_text('en;de\nA dog.;Ein Hund.\nGröße;"Maß; „groß“"\n', encoding="utf-8")
    assert load(tmp_path / "a.csv", delimiter=";", streaming=streaming) == EXPECTED


def test_delimiter_and_encoding_of_a_named_dataset(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.csv").write_text('en;de\nA dog.;Ein Hund.\nGröße;"Maß; „groß“"\n', encoding="cp1252")
    args = DataArguments(name=str(tmp_path / "corpus"), delimiter=";", encoding="cp1252")
    assert list(load_data(args)["train"]) == EXPECTED
    datasets.Dataset.from_list([{"en": "a", "de": "b"}]).to_parquet(tmp_path / "other" / "train.parquet")
    with pytest.raises(ValueError, match=r"data\.delimiter is ';'.* dataset .*other is not in a format"):
        load_data(DataArguments(name=str(tmp_path / "other"), delimiter=";"))


@pytest.mark.parametrize("content", ["en;de\na;b\n", "en;de\na, b;c\n", "en;de\na;b, c\n"])
def test_other_delimiter_is_hinted(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=r"a\.csv, line 2: .*separated by ';'\?.*data\.delimiter=';'"):
        load(tmp_path / "a.csv")


@eager_and_lazy
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32", "utf-8"])
def test_encoding_of_parallel_text(tmp_path: Path, encoding: str, streaming: bool) -> None:
    for side, language in (("source", "en"), ("target", "de")):
        lines = "\r\n".join(row[side] for row in EXPECTED)
        (tmp_path / f"train.{language}").write_bytes(lines.encode(encoding))
    assert load(tmp_path / "train", encoding=encoding, streaming=streaming) == EXPECTED


def test_encoding_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("en\tde\nA dog.\tEin Hund.\nGröße\tMaß; „groß“\n".encode("utf-16"))
    assert load(tmp_path / "a.tsv", encoding="utf-16") == EXPECTED


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("Größe\n".encode("latin-1"), None, r"a\.txt, line 1: byte 0xf6 .*not UTF-8\. Set data\.encoding"),
        (b"a\nb\x81\n", "cp1252", r"a\.txt, line 2: byte 0x81 .*not CP1252\. Set data\.encoding"),
        ("a\nb\n".encode("utf-16")[:-1], "utf-16", r"a\.txt, after line 1: not utf-16"),
        (b"a\n", "utf-9", r"data\.encoding is 'utf-9', but must be a text encoding"),
        (b"a\n", "rot13", r"data\.encoding is 'rot13', but must be a text encoding"),
    ],
)
def test_wrong_encoding_is_named(tmp_path: Path, content: bytes, encoding: str | None, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.txt", TEXT, encoding=encoding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "a.csv", "delimiter": ";;"}, r"data\.delimiter is ';;', but must be one character"),
        ({"train": "a.jsonl", "delimiter": ";"}, r"data\.delimiter is ';', but is only for files .*\.csv"),
        ({"train": "a.tmx", "encoding": "utf-16"}, r"data\.encoding is 'utf-16', but files .*\.tmx"),
    ],
)
def test_useless_format_fields_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(DataArguments(**options))


# --- Compression -----------------------------------------------------------------------------------------------------


@eager_and_lazy
@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_compressed_files_are_found(tmp_path: Path, suffix: str, streaming: bool) -> None:
    for side, language in (("source", "en"), ("target", "de")):
        compress(tmp_path / f"train.{language}{suffix}", "".join(row[side] + "\n" for row in EXPECTED).encode())
    assert load(tmp_path / "train", streaming=streaming) == EXPECTED
    table = "".join(json.dumps({"en": row["source"], "de": row["target"]}) + "\n" for row in EXPECTED)
    compress(tmp_path / f"a.jsonl{suffix}", table.encode())
    for name in (f"a.jsonl{suffix}", "a.jsonl"):
        assert load(tmp_path / name, streaming=streaming) == EXPECTED


@pytest.mark.parametrize("name", ["train.en", "train.en.gz"])
def test_prefix_with_the_suffix_of_a_side_is_hinted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=rf"no such file \(leave off {name.removeprefix('train')}\)"):
        load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_damaged_compressed_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    compress(path, "".join(f"line {i}\n" for i in range(100)).encode())
    path.write_bytes(path.read_bytes()[:-9] if damage == "truncated" else b"plain text\n")
    with pytest.raises(ValueError, match=rf"a\.txt{suffix}: not a complete {suffix} file"):
        load(path, TEXT)


# --- Nested columns --------------------------------------------------------------------------------------------------


@eager_and_lazy
@pytest.mark.parametrize("origin", ["jsonl", "parquet", "named"])
def test_nested_columns(tmp_path: Path, origin: str, streaming: bool) -> None:
    rows = [{"doc": {"src": {"text": row["source"]}, "to": row["target"]}, "id": 1} for row in EXPECTED]
    options = {"source": "doc.src.text", "target": "doc.to", "streaming": streaming}
    if origin == "named":
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "corpus" / "train.parquet")
        assert list(load_data(DataArguments(name=str(tmp_path / "corpus"), **options))["train"]) == EXPECTED
        return
    file = tmp_path / f"a.{origin}"
    getattr(datasets.Dataset.from_list(rows), {"jsonl": "to_json", "parquet": "to_parquet"}[origin])(file)
    assert load(file, **options) == EXPECTED


def test_column_with_a_dot_in_its_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"doc.text": "flat", "doc": {"text": "nested"}, "label": "x"}\n')
    assert load(tmp_path / "a.jsonl", LABELED_TEXT, text="doc.text") == [{"text": "flat", "label": "x"}]


@pytest.mark.parametrize("row", ['{"doc": {"src": "x"}}', '{"doc": {}}', '{"other": 1}'])
def test_missing_nested_column_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(row + "\n")
    with pytest.raises(ValueError, match=r"line 1: there is no column 'doc\.src\.text', only"):
        load(tmp_path / "a.jsonl", TEXT, text="doc.src.text")


def test_object_as_column_names_its_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"doc": {"src": {"text": "x"}}, "de": "y"}\n')
    with pytest.raises(ValueError, match=r"line 1: 'doc\.src' is .* Set data\.source=doc\.src\.text for nested"):
        load(tmp_path / "a.jsonl", source="doc.src")


# --- Translation memories --------------------------------------------------------------------------------------------

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en-GB" datatype="plaintext"/><body>
<tu><note>n</note><tuv xml:lang="en-GB"><seg>A <bpt i="1">&lt;b></bpt>dog<ept i="1"/>.</seg></tuv>
<tuv xml:lang="DE"><prop type="x">p</prop><seg>Ein <hi>Hund</hi>.</seg></tuv></tu>
<tu><tuv lang="en"><seg>Größe</seg></tuv><tuv lang="fr"><seg>x</seg></tuv>
<tuv lang="de_DE"><seg>Maß; „groß“</seg></tuv></tu>
</body></tmx>"""


@eager_and_lazy
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16"])
def test_translation_memory(tmp_path: Path, encoding: str, streaming: bool) -> None:
    compress(tmp_path / "memory.tmx.gz", TMX.replace("UTF-8", encoding).encode(encoding))
    assert load(tmp_path / "memory.tmx", streaming=streaming) == EXPECTED


def test_units_without_a_language_are_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "memory.tmx").write_text(TMX, encoding="utf-8")
    with pytest.raises(ValueError, match=r"unit 1: 'fr' is None.*'en-GB', 'DE'.*data\.drop_empty=true"):
        load(tmp_path / "memory.tmx", target="fr")
    assert load(tmp_path / "memory.tmx", target="fr", drop_empty=True) == [{"source": "Größe", "target": "x"}]
    assert "data.train (en-fr): dropped 1 of 2 rows: 1 empty." in caplog.text


ENTITIES = '<!DOCTYPE tmx [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{ENTITIES}<tmx><body><tu><tuv lang='en'><seg>&b;</seg></tuv></tu></body></tmx>", "XML entities.*refused"),
        (f"{EXTERNAL}<tmx><body><tu><tuv lang='en'><seg>&a;</seg></tuv></tu></body></tmx>", "XML entities.*refused"),
        ("<tmx><body><tu>", r"memory\.tmx: not a TMX file \(no element found"),
        ("not XML", r"memory\.tmx: not a TMX file"),
        ("", r"memory\.tmx: not a TMX file"),
        ("<tmx><body/></tmx>", r"memory\.tmx: there are no sentence pairs"),
        (TMX.replace('"DE"', '"it"').replace("de_DE", "it"), r"has the language 'de', only .*it"),
    ],
)
def test_invalid_translation_memory(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "memory.tmx").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "memory.tmx", drop_empty=True)


def test_translation_memory_is_freed_unit_by_unit(tmp_path: Path) -> None:
    unit = "<tu><tuv lang='en'><seg>a</seg></tuv><tuv lang='de'><seg>b</seg></tuv></tu>"
    (tmp_path / "memory.tmx").write_text(f"<tmx><body>{unit * 500}</body></tmx>")
    rows = tmx_rows(str(tmp_path / "memory.tmx"), ("en", "de"))
    assert sum(1 for _ in islice(rows, 499)) == 499
    assert sum(isinstance(found, Element) for found in gc.get_objects()) < 100, "of 2,500 elements of the file"
    assert list(rows) == [(f"{tmp_path}/memory.tmx, translation unit 500", {"en": "a", "de": "b"})]


# --- Empty sides and control characters ------------------------------------------------------------------------------


@eager_and_lazy
def test_empty_sides_are_dropped_in_every_split(
    tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.en").write_text("a\n\nc\n \n")
    (tmp_path / "a.de").write_text("A\nB\n\nD\n")
    prefix = str(tmp_path / "a")
    args = DataArguments(train=prefix, test=prefix, drop_empty=True, streaming=streaming)
    for split, rows in load_data(args).items():
        assert list(rows) == [{"source": "a", "target": "A"}]
        assert streaming or f"data.{split} (en-de): dropped 3 of 4 rows: 3 empty." in caplog.text
    with pytest.raises(ValueError, match=r"line 2: 'en' is ''.*data\.drop_empty=true"):
        load(prefix, streaming=streaming)


@eager_and_lazy
def test_control_characters_are_reported_with_their_line(
    tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.en").write_bytes(b"a\tb\nc\x00\nd\x1b\n")
    (tmp_path / "a.de").write_bytes(b"A\nC\nD\n")
    with caplog.at_level(logging.WARNING, "trivium"):
        rows = load(tmp_path / "a", streaming=streaming)
    assert rows[1] == {"source": "c\x00", "target": "C"}
    assert "a.de, line 2: the source has the control character U+0000 at position 2. 2 rows" in caplog.text
