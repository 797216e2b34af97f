"""Test how every task converts text into model inputs: packing, windows, masks, prompts, labels."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_model
from transformers import PreTrainedModel

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumTokenizer,
)
from trivium.configuration import TriviumConfig
from trivium.data.packing import STATISTICS
from trivium.modeling.loss import IGNORE_INDEX
from trivium.tasks import (
    TASKS,
    InputArguments,
    encode_label,
    encode_rows,
    label_facts,
    labels_of_logits,
    labels_of_row,
    labels_of_targets,
    make_collator,
    pack,
    windows_of_rows,
)
from trivium.tokenization import train_tokenizer

TEXTS = ["a cat", "two dogs ran across the road", "birds", "the cat sat on the mat and slept until the evening"]
PAD = 0


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=290, add_bos_token=True, add_eos_token=False)


@pytest.fixture(scope="module")
def both_ends() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=290, add_bos_token=True, add_eos_token=True)


def config_for(tokenizer: TriviumTokenizer, **options: Any) -> TriviumConfig:
    return tiny_config(vocab_size=len(tokenizer), **options)


def texts_as_rows(texts: list[str] = TEXTS) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


# --- Packing ---------------------------------------------------------------------------------------------------------


def pack_slowly(documents: list[list[int]], length: int) -> list[list[tuple[int, int, int]]]:
    """Return rows of (id, position, label), packed one token at a time."""
    rows: list[list[tuple[int, int, int]]] = [[]]
    for document in documents:
        position = 0
        for place, token in enumerate(document):
            if len(rows[-1]) == length:
                rows.append([])
                position = 0
            rows[-1].append((token, position, token if place > 0 else IGNORE_INDEX))
            position += 1
    rows[-1] += [(PAD, i, IGNORE_INDEX) for i in range(length - len(rows[-1]))]
    return rows


def some_documents(count: int, longest: int) -> list[list[int]]:
    return [torch.randint(3, 31, (n,)).tolist() for n in torch.randint(1, longest + 1, (count,)).tolist()]


@pytest.mark.parametrize("length", [2, 5, 8, 64])
def test_packing_matches_slow_reference(length: int) -> None:
    for _ in range(10):
        documents = some_documents(7, 12)
        packed = pack(documents, length, PAD)
        counts = [packed.pop(name) for name in STATISTICS]
        rows = [list(zip(*columns, strict=True)) for columns in zip(*packed.values(), strict=True)]
        assert counts[0] == [length] * (len(rows) - 1) + [(sum(map(len, documents)) - 1) % length + 1]
        assert counts[1] == [int(row[0][1:] == (0, row[0][0])) for row in rows]
        assert list(packed) == ["input_ids", "position_ids", "labels"]
        assert rows == pack_slowly(documents, length)


def test_full_packed_row_needs_no_padding() -> None:
    assert pack([[5, 6, 7], [8, 9, 10]], 3, PAD)["input_ids"] == [[5, 6, 7], [8, 9, 10]]
    packed = pack([[5, 6, 7, 8, 9]], 3, PAD)
    assert packed["input_ids"] == [[5, 6, 7], [8, 9, PAD]]
    assert packed["position_ids"] == [[0, 1, 2], [0, 1, 0]]
    assert packed["labels"] == [[IGNORE_INDEX, 6, 7], [8, 9, IGNORE_INDEX]]


@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
def test_packed_loss_matches_separate_documents(positions: str) -> None:
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, position_embedding_type=positions)
    # The second row has 12 tokens and one padding token.
    documents = [torch.randint(3, 31, (n,)).tolist() for n in (5, 2, 6, 1, 7, 4)]
    batch = {name: torch.tensor(rows) for name, rows in pack(documents, 13, PAD).items()}
    for name in STATISTICS:
        del batch[name]
    assert batch["input_ids"].shape == (2, 13)
    alone = [torch.tensor([document]) for document in documents]
    total = sum(model(ids, labels=ids, num_items_in_batch=1).loss for ids in alone)
    tokens = sum(len(document) - 1 for document in documents)
    torch.testing.assert_close(model(**batch).loss, total / tokens)
    torch.testing.assert_close(model(**batch, num_items_in_batch=1).loss, total)


def test_texts_are_packed_whole(tokenizer: TriviumTokenizer) -> None:
    config = config_for(tokenizer, encoder_layers=0)
    inputs = InputArguments(packing=True, max_length=7)
    rows = encode_rows(texts_as_rows(), TASKS["causal-lm"], tokenizer, config, inputs)
    assert {len(row[name]) for row in rows for name in row if name not in STATISTICS} == {7}
    ids = [token for row in rows for token in row["input_ids"]]
    expected = [i for text in TEXTS for i in (tokenizer.bos_token_id, *words(tokenizer, text), tokenizer.eos_token_id)]
    assert ids == expected + [tokenizer.pad_token_id] * (-len(expected) % 7)
    collate = make_collator(TASKS["causal-lm"], tokenizer, model_of("causal-lm", config), inputs)
    # With an attention mask, the model would not detect that positions restart.
    assert set(collate(rows)) == {"input_ids", "position_ids", "labels"}


def words(tokenizer: TriviumTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def model_of(task: str, config: TriviumConfig) -> PreTrainedModel:
    return TASKS[task].model_class(config)


# --- Texts for a language model --------------------------------------------------------------------------------------


def test_long_texts_are_truncated_and_padding_is_ignored(tokenizer: TriviumTokenizer) -> None:
    config = config_for(tokenizer, encoder_layers=0)
    inputs = InputArguments(max_length=6)
    rows = encode_rows(texts_as_rows(), TASKS["causal-lm"], tokenizer, config, inputs)
    assert [row["length"] for row in rows] == [len(row["input_ids"]) for row in rows]
    assert rows[1]["input_ids"] == [tokenizer.bos_token_id, *words(tokenizer, TEXTS[1])][:6]
    assert rows[2]["input_ids"] == [tokenizer.bos_token_id, *words(tokenizer, TEXTS[2]), tokenizer.eos_token_id][:6]
    batch = make_collator(TASKS["causal-lm"], tokenizer, model_of("causal-lm", config), inputs)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert torch.equal(batch["labels"] != IGNORE_INDEX, batch["attention_mask"].bool())
    assert torch.equal(batch["labels"].where(batch["attention_mask"].bool(), 0), batch["input_ids"])


def test_bos_is_not_added_if_tokenizer_does_not(tokenizer: TriviumTokenizer) -> None:
    plain = train_tokenizer(TEXTS, vocab_size=290, add_bos_token=False)
    row = encode_rows(texts_as_rows(["a cat"]), TASKS["causal-lm"], plain, config_for(plain), InputArguments())[0]
    # There is a single EOS, although the tokenizer adds one as well.
    assert row["input_ids"] == [*words(plain, "a cat"), plain.eos_token_id]


@pytest.mark.parametrize("max_length", [2, 3, 5, 6, 100])
def test_windows_predict_every_token_but_first_once(tokenizer: TriviumTokenizer, max_length: int) -> None:
    config = config_for(tokenizer)
    for text in TEXTS:
        document = [tokenizer.bos_token_id, *words(tokenizer, text), tokenizer.eos_token_id]
        windows = windows_of_rows([{"text": text}], tokenizer, config, InputArguments(max_length=max_length))
        assert [token for window in windows for token in window["labels"]] == document[1:]
        assert [token for window in windows for token in window["input_ids"]] == document[:-1]
        assert all(1 <= len(window["labels"]) == len(window["input_ids"]) <= max_length for window in windows)
        assert len(windows) == math.ceil((len(document) - 1) / max_length)


def test_texts_are_truncated_at_model_positions(both_ends: TriviumTokenizer) -> None:
    config = config_for(both_ends, max_position_embeddings=6)
    tasks: dict[str, dict[str, Any]] = {
        "causal-lm": {"text": TEXTS[3]},
        "masked-lm": {"text": TEXTS[3]},
        "translation": {"source": TEXTS[3], "target": TEXTS[3]},
        "completion": {"source": TEXTS[3], "target": TEXTS[3]},
    }
    for task, row in tasks.items():
        for limit, inputs in ((6, InputArguments()), (4, InputArguments(max_length=4))):
            encoded = encode_rows([row], TASKS[task], both_ends, config, inputs)[0]
            lengths = {len(values) for values in encoded.values() if isinstance(values, list)}
            assert lengths == {limit} == {encoded["length"]}, task


# --- Pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_become_sources_and_labels(tokenizer: TriviumTokenizer) -> None:
    closed = train_tokenizer(TEXTS, vocab_size=290)
    config = config_for(closed)
    rows = [{"source": "a cat", "target": "two dogs"}, {"source": "the birds ran", "target": "on"}]
    encoded = encode_rows(rows, TASKS["translation"], closed, config, InputArguments())
    assert encoded[0]["input_ids"] == [*words(closed, "a cat"), closed.eos_token_id]
    assert encoded[0]["labels"] == [*words(closed, "two dogs"), closed.eos_token_id]
    assert [row["length"] for row in encoded] == [max(len(r["input_ids"]), len(r["labels"])) for r in encoded]
    collate = make_collator(TASKS["translation"], closed, TriviumForConditionalGeneration(config), InputArguments())
    batch = collate(encoded)
    assert (batch["labels"] == IGNORE_INDEX).any()
    assert batch["decoder_input_ids"].min() >= 0


def test_completion_labels_cover_target_only(tokenizer: TriviumTokenizer) -> None:
    inputs = InputArguments(prompt="say {source}:")
    row = {"source": "a cat {target}", "target": " two dogs"}
    encoded = encode_rows([row], TASKS["completion"], tokenizer, config_for(tokenizer), inputs)[0]
    prompt = [tokenizer.bos_token_id, *words(tokenizer, "say a cat {target}:")]
    answer = [*words(tokenizer, " two dogs"), tokenizer.eos_token_id]
    assert encoded["input_ids"] == prompt + answer
    assert encoded["labels"] == [IGNORE_INDEX] * len(prompt) + answer
    cut = InputArguments(prompt="say {source}:", max_length=len(prompt) + 2)
    encoded = encode_rows([row], TASKS["completion"], tokenizer, config_for(tokenizer), cut)[0]
    assert encoded["input_ids"] == prompt + answer[:2]
    assert encoded["labels"] == [IGNORE_INDEX] * len(prompt) + answer[:2]


# --- Masks -----------------------------------------------------------------------------------------------------------


def masks(
    tokenizer: TriviumTokenizer, inputs: InputArguments, epoch: int = 0, texts: list[str] = TEXTS
) -> dict[str, torch.Tensor]:
    config = config_for(tokenizer, decoder_layers=0)
    rows = encode_rows(texts_as_rows(texts), TASKS["masked-lm"], tokenizer, config, inputs)
    return make_collator(TASKS["masked-lm"], tokenizer, TriviumForMaskedLM(config), inputs, lambda: epoch)(rows)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("whole", [False, True], ids=["tokens", "words"])
def test_masking_covers_labels_and_no_special_tokens(
    both_ends: TriviumTokenizer, whole: bool, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both_ends, "padding_side", side)
    batch = masks(both_ends, InputArguments(mlm_probability=0.5, whole_word_mask=whole))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    plain = both_ends(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    learned = batch["labels"] != IGNORE_INDEX
    assert torch.equal(batch["input_ids"][~learned], plain["input_ids"][~learned])
    assert torch.equal(batch["labels"][learned], plain["input_ids"][learned])
    special = torch.isin(plain["input_ids"], torch.tensor([both_ends.bos_token_id, both_ends.eos_token_id, PAD]))
    assert not (learned & special).any()
    assert 0.2 < learned.sum() / (~special).sum() < 0.8
    assert ((batch["input_ids"] == both_ends.mask_token_id) & learned).sum() > 0.5 * learned.sum()


def test_whole_word_masking(both_ends: TriviumTokenizer) -> None:
    batch = masks(both_ends, InputArguments(mlm_probability=0.5, whole_word_mask=True))
    partly, spelled = 0, 0
    for text, labels in zip(TEXTS, batch["labels"], strict=True):
        ids = both_ends(text)["input_ids"]
        pieces = [both_ends.target.backend_tokenizer.decode([i], skip_special_tokens=False) for i in ids]
        word, by_word = 0, dict[int, list[bool]]()
        for i in range(1, len(ids) - 1):
            word += pieces[i].startswith(" ")
            by_word.setdefault(word, []).append(bool(labels[i] != IGNORE_INDEX))
        assert len(by_word) == len(text.split())
        partly += sum(any(hidden) and not all(hidden) for hidden in by_word.values())
        spelled += sum(len(hidden) > 1 and all(hidden) for hidden in by_word.values())
    assert partly == 0
    assert spelled > 0  # Some words consist of several tokens.


def test_masks_are_determined_by_batch_and_epoch(both_ends: TriviumTokenizer) -> None:
    inputs = InputArguments()
    config = config_for(both_ends, decoder_layers=0)
    rows = encode_rows(texts_as_rows(), TASKS["masked-lm"], both_ends, config, inputs)
    collate = make_collator(TASKS["masked-lm"], both_ends, TriviumForMaskedLM(config), inputs)
    state = torch.random.get_rng_state()
    first = collate(rows)
    # Masking must not advance the global RNG, which dropout uses and resumed runs restore.
    assert torch.equal(torch.random.get_rng_state(), state)
    collate(rows[1:])
    again = collate(rows)
    assert all(torch.equal(first[name], again[name]) for name in first)
    draws = {tuple(masks(both_ends, inputs, epoch)["labels"].flatten().tolist()) for epoch in range(5)}
    assert len(draws) == 5


def test_masking_probability(both_ends: TriviumTokenizer) -> None:
    texts = [" ".join([str(i), *TEXTS]) for i in range(50)]
    labels = masks(both_ends, InputArguments(mlm_probability=0.3), texts=texts)["labels"]
    real = both_ends(texts, padding=True, return_tensors="pt")["attention_mask"].sum() - 2 * len(texts)
    assert (labels != IGNORE_INDEX).sum() / real == pytest.approx(0.3, abs=0.03)


# --- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "problem_type", "names"),
    [
        (["pos", "neg", "pos"], "single_label_classification", ["neg", "pos"]),
        ([10, 2, 1, 2], "single_label_classification", ["1", "2", "10"]),
        ([True, False], "single_label_classification", ["False", "True"]),
        ([["b", "a"], [], ["c"]], "multi_label_classification", ["a", "b", "c"]),
        ([[11, 3], [2]], "multi_label_classification", ["2", "3", "11"]),
        ([["a"], "b"], "multi_label_classification", ["a", "b"]),
    ],
)
def test_problem_type_follows_from_labels(labels: list[Any], problem_type: str, names: list[str]) -> None:
    facts = label_facts(iter(labels))
    assert facts["problem_type"] == problem_type
    assert facts["id2label"] == dict(enumerate(names))
    assert facts["label2id"] == {name: i for i, name in enumerate(names)}
    assert tiny_config(**facts).num_labels == len(names)


def test_floats_are_regression_and_so_is_explicit_type() -> None:
    regression = {"problem_type": "regression", "num_labels": 1}
    assert label_facts([1, 0.5, 2]) == regression
    assert label_facts(["0.5", "2"], "regression") == regression  # as read from a CSV file
    with pytest.raises(ValueError, match=r"list.*labels.*0\.5"):
        label_facts([[0.5, 1.0]])
    with pytest.raises(ValueError, match=r"label of all training rows is 'a', .* Set data\.label"):
        label_facts(["a", "a"])


def test_label_encoding_round_trips() -> None:
    single = tiny_config(**label_facts(["cat", "dog", "eel"]))
    assert [encode_label(label, single) for label in ("eel", "cat")] == [2, 0]
    assert labels_of_targets(torch.tensor([2, 0]), single) == ["eel", "cat"]
    assert labels_of_logits(torch.tensor([[0.0, 1.0, 3.0], [2.0, 1.0, -1.0]]), single) == ["eel", "cat"]

    several = tiny_config(**label_facts([["cat", "dog", "eel"]]))
    assert encode_label(["eel", "cat"], several) == [1.0, 0.0, 1.0]
    assert encode_label([], several) == [0.0, 0.0, 0.0]
    assert encode_label("dog", several) == [0.0, 1.0, 0.0]
    assert labels_of_row(["eel", "cat"], several) == ["cat", "eel"]
    assert labels_of_targets(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), several) == [["cat", "eel"], []]
    assert labels_of_logits(torch.tensor([[0.1, -0.1, 5.0]]), several) == [["cat", "eel"]]

    number = tiny_config(**label_facts([0.5]))
    assert encode_label("2.5", number) == labels_of_row(2.5, number) == 2.5
    assert labels_of_logits(torch.tensor([[0.5], [-1.0]]), number) == [0.5, -1.0]


def test_multi_labels_are_ordered_by_id() -> None:
    """Multi-hot labels must follow the label ids, although a saved configuration sorts `label2id` by name."""
    config = tiny_config(
        problem_type="multi_label_classification", label2id={"dog": 1, "eel": 0}, id2label={0: "eel", 1: "dog"}
    )
    assert encode_label(["eel"], config) == [1.0, 0.0]


def test_unknown_labels_are_named() -> None:
    config = tiny_config(**label_facts(["cat", "dog"]))
    with pytest.raises(ValueError, match=r"label 'eel'.*unknown.*training data.*cat, dog"):
        encode_label("eel", config)
    with pytest.raises(ValueError, match=r"label 'eel'.*number"):
        encode_label("eel", tiny_config(**label_facts([0.5])))


@pytest.mark.parametrize(
    ("labels", "dtype"), [(["a", "b"], torch.int64), ([["a"], ["a", "b"]], torch.float32), ([0.5, 1.0], torch.float32)]
)
def test_labeled_batches_fit_the_model(both_ends: TriviumTokenizer, labels: list[Any], dtype: torch.dtype) -> None:
    config = config_for(both_ends, decoder_layers=0, **label_facts(labels))
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS[:2], labels, strict=True)]
    encoded = encode_rows(rows, TASKS["classification"], both_ends, config, InputArguments())
    model = TriviumForSequenceClassification(config)
    batch = make_collator(TASKS["classification"], both_ends, model, InputArguments())(encoded)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].dtype == dtype
    assert model(**batch).loss > 0


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1, but must be at least 2"),
        ({"prompt": "say it:"}, "prompt is 'say it:', but must contain {source}"),
        ({"mlm_probability": 0.0}, "mlm_probability is 0.0, but"),
        ({"mlm_probability": 1.5}, "mlm_probability is 1.5, but"),
    ],
)
def test_inputs_without_rows_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputArguments(**options)


def test_metrics_must_fit_task_and_model() -> None:
    regression, names = tiny_config(**label_facts([0.5])), tiny_config(**label_facts(["a", "b"]))
    kind = TASKS["classification"]
    assert kind.metrics_for(regression) == ("mse", "r2")
    assert kind.metrics_for(names) == ("accuracy", "f1")
    kind.check_metrics(["mse", "accuracy"])
    with pytest.raises(ValueError, match=r"'mse'.*accuracy, f1"):
        kind.check_metrics(["accuracy", "mse"], names)
    with pytest.raises(ValueError, match=r"'f1'.*mse, r2"):
        kind.check_metrics(["f1"], regression)
    with pytest.raises(ValueError, match=r"'sacrebleu'.*perplexity, accuracy"):
        TASKS["masked-lm"].check_metrics(["sacrebleu"])
