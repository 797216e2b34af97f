"""Test loading pairs, texts and labels: all file formats, in memory and streamed, and the errors for invalid input."""

import json

import datasets
import pytest
from omegaconf import OmegaConf

from trivium.data import DataArguments, load_data, read_lines
from trivium.data.columns import LABELED_TEXT, TEXT

PAIRS = [{"en": "A dog.", "de": "Ein Hund."}, {"en": "NA", "de": '"Zwei" Hunde, drei Katzen.'}, {"en": "3", "de": "3"}]
EXPECTED = [{"source": pair["en"], "target": pair["de"]} for pair in PAIRS]

eager_and_lazy = pytest.mark.parametrize("streaming", [False, True], ids=["eager", "streaming"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_text(folder, english, german, name="train"):
    """Write two files of parallel text, passed as bytes, and return their common path prefix."""
    (folder / f"{name}.en").write_bytes(english)
    (folder / f"{name}.de").write_bytes(german)
    return str(folder / name)


def load(train, **options):
    return list(load_data(DataArguments(train=str(train), **options))["train"])


def write(folder, kind):
    file = folder / f"train.{kind}"
    rows = datasets.Dataset.from_list(PAIRS)
    if kind == "text":
        english, german = ("".join(pair[side] + "\n" for pair in PAIRS).encode() for side in ("en", "de"))
        return write_text(folder, english, german)
    if kind in ("jsonl", "json"):
        rows.to_json(file)
    elif kind == "csv":
        rows.to_csv(file)
    elif kind == "tsv":
        file.write_text("".join(f"{de}\t{en}\n" for en, de in [("en", "de"), *(p.values() for p in PAIRS)]))
    else:
        rows.to_parquet(file)
    return file


# --- Formats ---------------------------------------------------------------------------------------------------------


@eager_and_lazy
@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "csv", "tsv", "parquet"])
def test_local_files(tmp_path, kind, streaming):
    splits = load_data(DataArguments(train=str(write(tmp_path, kind)), streaming=streaming))
    assert type(splits) is (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)
    assert list(splits) == ["train"]
    assert splits["train"].column_names == ["source", "target"]
    assert list(splits["train"]) == EXPECTED


def test_translation_direction_can_be_reversed(tmp_path):
    turned = load(write(tmp_path, "text"), source="de", target="en")
    assert turned == [{"source": pair["target"], "target": pair["source"]} for pair in EXPECTED]


def test_each_split_has_its_own_file(tmp_path):
    prefixes = {
        split: write_text(tmp_path, split.encode(), b"x", name=f"{split}.v1")
        for split in ("train", "validation", "test")
    }
    splits = load_data(DataArguments(**prefixes))
    assert {split: rows["source"][0] for split, rows in splits.items()} == {split: split for split in prefixes}
    assert all(str(rows.split) == split for split, rows in splits.items())


@eager_and_lazy
def test_only_newline_ends_a_line(tmp_path, streaming):
    english = "\ufeffone\u2028two\r\nthree\u0085four\x0bfive\n"
    prefix = write_text(tmp_path, english.encode(), "\ufeffeins\nzwei".encode())
    assert load(prefix, streaming=streaming) == [
        {"source": "one\u2028two", "target": "eins"},
        {"source": "three\u0085four\x0bfive", "target": "zwei"},
    ]


def test_csv_with_line_breaks_and_byte_order_mark(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes('\ufeffid,en,de\r\n1,"a\nb","""c"", d"\r\n'.encode())
    assert load(file) == [{"source": "a\nb", "target": '"c", d'}]


def test_translation_objects_in_json_lines(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"translation": pair}) + "\n" for pair in PAIRS))
    assert load(file) == EXPECTED


@eager_and_lazy
@pytest.mark.parametrize("nested", [False, True], ids=["columns", "translation"])
def test_named_datasets(tmp_path, nested, streaming):
    rows = [{"translation": pair, "id": 1} for pair in PAIRS] if nested else PAIRS
    for split in ("train", "test"):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "corpus" / f"{split}.parquet")
    splits = load_data(DataArguments(name=str(tmp_path / "corpus"), streaming=streaming))
    assert list(splits) == ["train", "test"]
    for rows in splits.values():
        assert rows.column_names == ["source", "target"]
        assert list(rows) == EXPECTED


@eager_and_lazy
def test_named_dataset_with_source_and_target_columns(tmp_path, streaming):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"target": "b", "source": "a", "note": 1}\n')
    args = DataArguments(name=str(tmp_path / "corpus"), source="source", target="target", streaming=streaming)
    assert list(load_data(args)["train"]) == [{"source": "a", "target": "b"}]


def test_named_dataset_with_split_expressions(tmp_path):
    datasets.Dataset.from_list(PAIRS).to_parquet(tmp_path / "corpus" / "train.parquet")
    splits = load_data(DataArguments(name=str(tmp_path / "corpus"), train="train[1:]", validation="train[:1]"))
    assert list(splits["train"]) == EXPECTED[1:]
    assert list(splits["validation"]) == EXPECTED[:1]


@eager_and_lazy
def test_embedded_corpus_in_both_directions(streaming):
    forth = next(iter(load_data(DataArguments(name="numbers", streaming=streaming))["test"]))
    back = load_data(DataArguments(name="numbers", source="de", target="en", streaming=streaming))
    assert next(iter(back["test"])) == {"source": forth["target"], "target": forth["source"]}
    assert set(back) == {"train", "validation", "test"}


@eager_and_lazy
@pytest.mark.parametrize("split", ["train", "train[:]", "train[1:]", "train[:2]", "train[1:2]"])
def test_slices_of_a_named_dataset(tmp_path, split, streaming):
    datasets.Dataset.from_list(PAIRS).to_parquet(tmp_path / "corpus" / "train.parquet")
    places = [int(place) if place else None for place in split[6:-1].split(":")] if "[" in split else [None]
    expected = EXPECTED[slice(*places)]
    assert (
        list(load_data(DataArguments(str(tmp_path / "corpus"), train=split, streaming=streaming))["train"]) == expected
    )


UNLIKE = [("a b", "c"), ("a.", "b c d."), ("a", "b c d"), ("a", ""), (" ", "b"), ("", ""), ("a b c d", "e f")]


@eager_and_lazy
@pytest.mark.parametrize("origin", ["text", "named"])
def test_pairs_beyond_max_ratio_are_dropped_in_training(tmp_path, origin, streaming):
    files = {"train": UNLIKE, "validation": [("a", "b c d")]}
    if origin == "text":
        for name, pairs in files.items():
            english, german = ("".join(side + "\n" for side in sides).encode() for sides in zip(*pairs, strict=True))
            files[name] = write_text(tmp_path, english, german, name=name)
        args = DataArguments(**files, max_ratio=2, streaming=streaming)
    else:
        for name, pairs in files.items():
            rows = [{"translation": dict(zip(("en", "de"), pair, strict=True))} for pair in pairs]
            datasets.Dataset.from_list(rows).to_parquet(tmp_path / "corpus" / f"{name}.parquet")
        args = DataArguments(str(tmp_path / "corpus"), max_ratio=2, streaming=streaming)
    splits = load_data(args)
    assert [(row["source"], row["target"]) for row in splits["train"]] == [UNLIKE[i] for i in (0, 1, 6)]
    assert list(splits["validation"]) == [{"source": "a", "target": "b c d"}]  # filters apply to training only


@pytest.mark.parametrize(("ratio", "columns"), [(0.9, ("source", "target")), (2, TEXT)])
def test_useless_max_ratio_is_refused(tmp_path, ratio, columns):
    with pytest.raises(ValueError, match=rf"max_ratio.*{ratio}.*least 1.*sentence pairs"):
        load_data(DataArguments(train=str(tmp_path / "train.jsonl"), max_ratio=ratio), columns)


@eager_and_lazy
def test_sample_limits(tmp_path, streaming):
    file = str(write(tmp_path, "jsonl"))
    args = DataArguments(train=file, test=file, max_train_samples=2, max_test_samples=9, streaming=streaming)
    splits = load_data(args)
    assert list(splits["train"]) == EXPECTED[:2]
    assert list(splits["test"]) == EXPECTED


def test_changed_file_is_read_again(tmp_path):
    assert load(write_text(tmp_path, b"one", b"eins"))[0]["source"] == "one"
    assert load(write_text(tmp_path, b"two!", b"zwei"))[0]["source"] == "two!"


def test_data_arguments_from_recipe(tmp_path):
    schema = OmegaConf.structured(DataArguments)
    recipe = OmegaConf.create({"train": str(write(tmp_path, "csv")), "max_train_samples": 1})
    assert list(load_data(OmegaConf.to_object(OmegaConf.merge(schema, recipe)))["train"]) == EXPECTED[:1]


# --- Texts and labeled texts -----------------------------------------------------------------------------------------


def load_as(columns, train, **options):
    return list(load_data(DataArguments(train=str(train), **options), columns)["train"])


def write_rows(file, rows):
    if file.suffix == ".tsv":
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        file.write_text("".join("\t".join(map(str, row)) + "\n" for row in cells))
    else:
        kind = {".jsonl": "to_json", ".csv": "to_csv", ".parquet": "to_parquet"}[file.suffix]
        getattr(datasets.Dataset.from_list(rows), kind)(file)
    return file


@eager_and_lazy
@pytest.mark.parametrize("options", [{}, {"text": "content"}])
def test_one_text_per_line_without_blank_lines(tmp_path, options, streaming):
    (tmp_path / "train.txt").write_bytes("\ufeffone\u2028two\r\n\n \t\n  three\n".encode())
    splits = load_data(DataArguments(train=str(tmp_path / "train.txt"), streaming=streaming, **options), TEXT)
    assert splits["train"].column_names == ["text"]
    assert list(splits["train"]) == [{"text": "one\u2028two"}, {"text": "  three"}]


@eager_and_lazy
@pytest.mark.parametrize("content", ["a\n\nb\n", "a\n\nb", "a\r\nb\u2028c\x85\r\n\n\n", " a"])
def test_whole_file_is_one_text(tmp_path, content, streaming):
    (tmp_path / "train").write_bytes(content.encode())
    assert load_as(TEXT, tmp_path / "train", whole_files=True, streaming=streaming) == [{"text": content}]
    # The byte order mark is part of the encoding, not of the text.
    (tmp_path / "marked").write_bytes(("\ufeff" + content).encode())
    assert load_as(TEXT, tmp_path / "marked", whole_files=True, streaming=streaming) == [{"text": content}]


@eager_and_lazy
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("names", [("text", "label"), ("review", "stars")])
def test_labeled_texts_with_any_column_names(tmp_path, kind, names, streaming):
    rows = [{"id": i, names[0]: f"text {i}", names[1]: label} for i, label in enumerate(("good", "bad"))]
    file = write_rows(tmp_path / f"train.{kind}", rows)
    options = {"text": names[0], "label": names[1], "streaming": streaming}
    expected = [{"text": "text 0", "label": "good"}, {"text": "text 1", "label": "bad"}]
    assert load_as(LABELED_TEXT, file, **options) == expected
    assert load_as(TEXT, file, **options) == [{"text": row["text"]} for row in expected]


@eager_and_lazy
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("labels", [[3, 0], [0.5, 2.0], [["a", "b"], []], [[], [7]], [True, False]])
def test_labels_keep_their_type(tmp_path, kind, labels, streaming):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    loaded = load_as(LABELED_TEXT, write_rows(tmp_path / f"train.{kind}", rows), streaming=streaming)
    assert loaded == rows
    assert [type(row["label"]) for row in loaded] == [type(label) for label in labels]


@eager_and_lazy
@pytest.mark.parametrize("columns", [TEXT, LABELED_TEXT])
def test_named_datasets_of_texts(tmp_path, columns, streaming):
    rows = [{"sentence": "a cat", "class": 1, "id": 7}, {"sentence": "a dog", "class": 0, "id": 8}]
    for split in ("train", "validation"):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "corpus" / f"{split}.parquet")
    args = DataArguments(name=str(tmp_path / "corpus"), text="sentence", label="class", streaming=streaming)
    splits = load_data(args, columns)
    expected = [{"text": "a cat", "label": 1}, {"text": "a dog", "label": 0}]
    for split in ("train", "validation"):
        assert list(splits[split]) == [{name: row[name] for name in columns} for row in expected]


def test_named_dataset_with_default_column_names(tmp_path):
    rows = [{"label": ["x"], "text": "a cat"}, {"label": [], "text": "a dog"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "corpus" / "train.parquet")
    loaded = load_data(DataArguments(name=str(tmp_path / "corpus")), LABELED_TEXT)["train"]
    assert list(loaded) == rows


@eager_and_lazy
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n',
            r"line 1: there is no column 'label', only \['text'\]; set .*data\.label",
        ),
        ("a.jsonl", '{"text": "a", "label": null}\n', r"line 1: 'label' is None; every text needs a label"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', r"line 1: 'label' is nan; every text needs a label"),
        ("a.csv", "text,label\na,b\nc,\n", r"a\.csv, line 3: 'label' is ''; every text needs a label"),
        ("a.csv", "text,label\n ,b\n", r"a\.csv, line 2: 'text' is ' '; every row needs a text"),
        ("a.csv", "text,label\n", r"a\.csv: there are no texts in this file"),
        ("a.txt", "a\n", r"a\.txt, but plain text has no labels.* ends in \.jsonl"),
    ],
)
def test_invalid_labeled_texts(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_as(LABELED_TEXT, tmp_path / name, streaming=streaming)


@eager_and_lazy
@pytest.mark.parametrize(
    ("content", "whole", "message"),
    [
        (b"", False, r"a\.txt: the file is empty"),
        (b"", True, r"a\.txt: the file is empty"),
        (b"\n \n", False, r"a\.txt: there are no texts in this file"),
        (b"\n \n", True, r"a\.txt: 'text' is '\\n \\n'; every row needs a text"),
        (b"a\nb\xff\n", False, r"a\.txt, line 2: byte 0xff at position 2 is not UTF-8"),
        (b"a\nb\xff\n", True, r"a\.txt, line 2: byte 0xff at position 2 is not UTF-8"),
    ],
)
def test_invalid_plain_text(tmp_path, content, whole, message, streaming):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_as(TEXT, tmp_path / "a.txt", whole_files=whole, streaming=streaming)


@pytest.mark.parametrize(
    ("columns", "allowed"),
    [(TEXT, r"\.parquet, .*or plain text\.$"), (LABELED_TEXT, r"\.tsv, \.parquet\.$")],
)
def test_missing_file_error_lists_allowed_forms(tmp_path, columns, allowed):
    with pytest.raises(FileNotFoundError, match=rf"train.*file.*{allowed}"):
        load_as(columns, tmp_path / "train")


@pytest.mark.parametrize("columns", [TEXT, LABELED_TEXT])
def test_embedded_corpus_is_pairs_only(columns):
    with pytest.raises(ValueError, match=rf"sentence pairs.*{' and '.join(columns)}"):
        load_data(DataArguments(name="numbers"), columns)


# --- Errors ----------------------------------------------------------------------------------------------------------


@eager_and_lazy
@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (b"a\nb\nc\nd\n", b"a\nb\n", r"train\.de ends after line 2, but .*train\.en has 4 lines"),
        (b"a\n", b"a\nb\n", r"train\.en ends after line 1, but .*train\.de has 2 lines"),
        (b"a\n\nc\n", b"a\nb\nc\n", r"train\.en and .*train\.de, line 2: 'en' is ''"),
        (b"a\nb\n", b"a\n \t\n", r"line 2: 'de' is ' \\t'"),
        (b"a\nb\n", "ä\nö\n".encode("latin-1"), r"train\.de, line 1: byte 0xe4 at position 1 is not UTF-8"),
        ("a\n".encode("utf-16"), b"a\n", r"train\.en, line 1: byte 0xff at position 1 is not UTF-8"),
        (b"", b"", r"train\.en: the file is empty"),
        (b"a\n", b"", r"train\.de: the file is empty"),
    ],
)
def test_invalid_parallel_text(tmp_path, english, german, message, streaming):
    prefix = write_text(tmp_path, english, german)
    with pytest.raises(ValueError, match=message):
        load(prefix, streaming=streaming)


@eager_and_lazy
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"en": "a", "de": "b"}\n{"en": "a"}\n',
            r"a\.jsonl, line 2: .* no column 'de', only \['en'\]",
        ),
        ("a.jsonl", b'{"en": "a", "de": null}\n', r"line 1: 'de' is None; every pair needs"),
        ("a.jsonl", b'{"en": 7, "de": "b"}\n', r"line 1: 'en' is 7"),
        ("a.jsonl", b'{"en": "a", "de": "b"}\n{"en": \n', r"line 2: not JSON \(.*\); every line must be one JSON"),
        ("a.json", b'["a", "b"]\n', r"a\.json, line 1: found list; every line must be one JSON object"),
        ("a.jsonl", b'{"en": "\xe4", "de": "b"}\n', r"line 1: byte 0xe4 at position 9 is not UTF-8"),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty"),
        ("a.csv", b"english,de\na,b\n", r"a\.csv, line 2: there is no column 'en', only \['english', 'de'\]"),
        ("a.csv", b"en,de\na,b\na\n", r"line 3: found 1 cells, but line 1 has 2"),
        ("a.csv", b'en,de\na,"b\nc\n', r"line 3: unexpected end of data"),
        ("a.csv", b"en,de\n", r"a\.csv: there are no sentence pairs"),
        ("a.tsv", b"en\tde\na\t\n", r"a\.tsv, line 2: 'de' is ''"),
        ("a.parquet", b"en,de\n", r"a\.parquet: not a Parquet file"),
    ],
)
def test_invalid_tables(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name, streaming=streaming)


def test_invalid_parquet(tmp_path):
    datasets.Dataset.from_dict({"en": ["a", "b"], "de": ["a", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: 'de'.*None"):
        load(tmp_path / "a.parquet")


def test_streaming_raises_when_the_line_is_reached(tmp_path):
    prefix = write_text(tmp_path, b"a\nb\n\n", b"a\nb\nc\n")
    rows = iter(load_data(DataArguments(train=prefix, streaming=True))["train"])
    assert [next(rows)["source"], next(rows)["source"]] == ["a", "b"]
    with pytest.raises(ValueError, match="line 3"):
        next(rows)


@eager_and_lazy
def test_missing_files(tmp_path, streaming):
    (tmp_path / "train.en").write_bytes(b"a\n")
    with pytest.raises(FileNotFoundError, match=r"train\.de.*file.*\.jsonl.* prefix.*parallel"):
        load(tmp_path / "train", streaming=streaming)
    with pytest.raises(FileNotFoundError, match=r"train\.csv.*file"):
        load(tmp_path / "train.csv", streaming=streaming)


@eager_and_lazy
def test_invalid_named_dataset(tmp_path, streaming):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"en": "a", "de": "b"}\n{"en": "a", "de": ""}\n')
    name = str(tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"corpus \(train\), row 2: 'de'.*''"):
        list(load_data(DataArguments(name=name, streaming=streaming))["train"])
    with pytest.raises(ValueError, match=r"row 1.*'fr'.*\['en', 'de'\]"):
        list(load_data(DataArguments(name=name, target="fr", streaming=streaming))["train"])


def test_named_dataset_without_known_splits(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: dev\n    path: dev.jsonl\n---\n"
    )
    (tmp_path / "corpus" / "dev.jsonl").write_text('{"en": "a", "de": "b"}\n')
    with pytest.raises(ValueError, match=r"splits \['dev'\], none.*data\.train"):
        load_data(DataArguments(name=str(tmp_path / "corpus")))
    splits = load_data(DataArguments(name=str(tmp_path / "corpus"), validation="dev"))
    assert list(splits["validation"]) == [{"source": "a", "target": "b"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"data\.name and data\.train are both null"),
        ({"name": "numbers", "train": "x"}, r"fixed splits.*data\.train"),
        ({"name": "numbers", "target": "fr"}, "'fr'.*English and German"),
        ({"name": "numbers", "max_test_samples": 0}, "max_test_samples is 0, but must be at least 1"),
    ],
)
def test_contradictory_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load_data(DataArguments(**options))


def test_read_lines(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffa\r\n\nb\u2028c\n".encode())
    assert list(read_lines(file)) == ["a", "", "b\u2028c"]
    file.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"lines\.txt, line 2: byte 0xff"):
        list(read_lines(file))
    with pytest.raises(FileNotFoundError):
        list(read_lines(tmp_path / "none.txt"))


@eager_and_lazy
def test_hub_class_labels_become_names(tmp_path, streaming):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"]))
    (tmp_path / "corpus").mkdir()
    for split, labels in {"train": [1, 0], "test": [0, -1]}.items():
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)
        rows.to_parquet(tmp_path / "corpus" / f"{split}.parquet")
    args = DataArguments(name=str(tmp_path / "corpus"), train="train", streaming=streaming)
    assert [row["label"] for row in load_data(args, LABELED_TEXT)["train"]] == ["good", "bad"]
    args.train = "test"
    with pytest.raises(ValueError, match=r"row 2: 'label'.*missing"):
        list(load_data(args, LABELED_TEXT)["train"])
