"""Test BPE-dropout: its distribution, its batches, and that a resumed run sees the same segmentations."""

import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from distributed_runs import run_distributed
from tiny import tiny_model
from tiny_training import quiet_arguments
from token_batching import recipe_for
from trained_tokenizers import KINDS, SOURCE, TARGET, TRAINED
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, set_seed

from trivium import TriviumForConditionalGeneration
from trivium.data.numbers import english_cardinal, german_cardinal
from trivium.data.subword_dropout import DRAWS, Merges, SubwordDropoutPairs, read_merges, segment
from trivium.data.token_batches import EpochTokenBatchSampler
from trivium.recipe import load_recipe
from trivium.tokenization import train_tokenizer
from trivium.training import train
from trivium.training.distributed import launch_configs
from trivium.training.trainer import RunTrainer

NUMBERS = {
    "source": [english_cardinal(number) for number in range(300)],
    "target": [german_cardinal(number) for number in range(300)],
}
SHARED = train_tokenizer(NUMBERS["source"], target_texts=NUMBERS["target"], vocab_size=330)
SEPARATE = train_tokenizer(NUMBERS["source"], target_texts=NUMBERS["target"], vocab_size=310, shared=False)
TEXTS = [*SOURCE, "", " two  spaces ", "a <mask> b<mask>", "<s>fox</s>", "日本語 naïve\tTABS", "the " * 40]


def make_pairs(dropout: float = 0.2, seed: int = 0, tokenizer: Any = SHARED, max_length: int = 64) -> Any:
    return SubwordDropoutPairs(NUMBERS, tokenizer, max_length, dropout, seed)


# --- Segmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [TRAINED[0], TRAINED[KINDS.index({"byte_fallback": True})], TRAINED[-1]])
@pytest.mark.parametrize("add_bos_token", [False, True])
@pytest.mark.parametrize("max_length", [4, 512])
def test_without_dropout_matches_tokenizer(tokenizer: Any, add_bos_token: bool, max_length: int) -> None:
    tokenizer.add_bos_token = add_bos_token
    texts = {"source": TEXTS, "target": TEXTS[::-1]}
    pairs = SubwordDropoutPairs(texts, tokenizer, max_length, 0.0, 0)
    expected = tokenizer(TEXTS, text_target=TEXTS[::-1], truncation=True, max_length=max_length)
    tokenizer.add_bos_token = False
    rows = [pairs[index + 3 * len(TEXTS)] for index in range(len(TEXTS))]
    for name in ("input_ids", "attention_mask", "labels"):
        assert [row[name] for row in rows] == expected[name], name
    lengths = [[len(ids) for ids in expected[name]] for name in ("input_ids", "labels")]
    assert [side.tolist() for side in pairs.lengths(3)] == lengths


def test_both_vocabularies_are_segmented() -> None:
    expected = SEPARATE(NUMBERS["source"], text_target=NUMBERS["target"])
    plain, dropped = make_pairs(0.0, tokenizer=SEPARATE), make_pairs(0.5, tokenizer=SEPARATE)
    for row in range(300):
        assert plain[row]["input_ids"] == expected["input_ids"][row]
        assert plain[row]["labels"] == expected["labels"][row]
        assert SEPARATE.source.decode(dropped[row]["input_ids"]) == f"{NUMBERS['source'][row]}</s>"
        assert SEPARATE.target.decode(dropped[row]["labels"]) == f"{NUMBERS['target'][row]}</s>"


def distribution(tokens: tuple[int, ...], merges: Merges, dropout: float) -> Counter[tuple[int, ...]]:
    """Return the probability of each segmentation, by following every outcome of the paper's algorithm."""
    options = sorted((*merges.by_pair[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in merges.by_pair)
    result: Counter[tuple[int, ...]] = Counter({tokens: dropout ** len(options)})  # type: ignore[dict-item]
    for dropped, (_, merged, i) in enumerate(options):
        after = distribution((*tokens[:i], merged, *tokens[i + 2 :]), merges, dropout)
        for outcome, probability in after.items():
            result[outcome] += dropout**dropped * (1 - dropout) * probability  # type: ignore[assignment]
    return result


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_frequencies_match_exact_probabilities(dropout: float) -> None:
    merges, draws, random = read_merges(SHARED), 4000, Random(0).random
    for word in (" hundert", "seven", " and"):
        symbols = [symbol for token in SHARED(word)["input_ids"][:-1] for symbol in merges.symbols_of(token)]
        expected = distribution(tuple(symbols), merges, dropout)
        assert sum(expected.values()) == pytest.approx(1)
        assert len(expected) > 3
        drawn = Counter(tuple(segment(symbols, merges, dropout, random)) for _ in range(draws))
        # For each outcome, the count has a standard deviation of at most sqrt(draws * probability).
        for outcome, probability in expected.items():
            assert abs(drawn[outcome] - draws * probability) < 5 * (draws * probability) ** 0.5 + 3, (word, outcome)


def test_short_words_match_dropout_of_tokenizers() -> None:
    """With two merges, no queue entry of `tokenizers` can become invalid and bring a dropped merge back."""
    tokenizer = train_tokenizer(["abc"] * 9, vocab_size=263)
    merges, draws, random = read_merges(tokenizer), 4000, Random(0).random
    symbols = [tokenizer.convert_tokens_to_ids(letter) for letter in "abc"]
    drawn = Counter(tuple(segment(symbols, merges, 0.4, random)) for _ in range(draws))
    backend = tokenizer.backend_tokenizer
    backend.model.dropout = 0.4
    theirs = Counter(tuple(backend.encode("abc", add_special_tokens=False).ids) for _ in range(draws))
    backend.model.dropout = None
    assert len(theirs) == 3
    for outcome in theirs | drawn:
        assert abs(drawn[outcome] - theirs[outcome]) < 5 * (drawn[outcome] + theirs[outcome]) ** 0.5, outcome


def test_segmentation_depends_on_seed_and_epoch_only() -> None:
    pairs = make_pairs()
    first = [pairs[row] for row in range(300)]
    second = [pairs[row] for row in range(300, 600)]
    assert first != second
    assert [pairs[row] for row in range(300)] == first
    assert [make_pairs()[row] for row in (0, 300)] == [first[0], second[0]]
    assert [make_pairs(seed=1)[row] for row in range(5)] != first[:5]
    assert [pickle.loads(pickle.dumps(pairs))[row] for row in (299, 599)] == [first[299], second[299]]
    for row in first + second:
        assert len(row["input_ids"]) == len(row["attention_mask"])
    assert len({tuple(row["labels"]) for row in first}) == 300
    for row, text in zip(second, NUMBERS["target"], strict=True):
        assert SHARED.decode(row["labels"], skip_special_tokens=True) == text


def test_frequent_words_have_many_segmentations() -> None:
    texts = {"source": ["hundert"] * 900, "target": ["x"] * 900}
    rows = SubwordDropoutPairs(texts, SHARED, 64, 0.5, 0)
    assert len({tuple(rows[row]["input_ids"]) for row in range(900)}) > DRAWS


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [40, 900])
def test_epochs_have_equally_many_batches(max_tokens: int) -> None:
    """The batches of short rows keep within the limit; longer ones, of 40 tokens, may exceed it by a row's length."""
    pairs, epoch = make_pairs(0.3), 0
    batches = EpochTokenBatchSampler(pairs.lengths, max_tokens, 0, lambda: epoch)
    orders = []
    for epoch in (0, 1, 2, 3):
        drawn = list(batches)
        assert len(drawn) == len(batches)
        assert sorted(index for batch in drawn for index in batch) == list(range(300 * epoch, 300 * epoch + 300))
        lengths = np.max(pairs.lengths(epoch), axis=0)
        largest = max(len(batch) * lengths[np.array(batch) % 300].max() for batch in drawn)
        assert largest <= max_tokens * (1.1 if max_tokens == 40 else 1)
        assert list(batches) == drawn
        orders.append([[index % 300 for index in batch] for batch in drawn])
    assert len({str(order) for order in orders}) == 4


# --- Training --------------------------------------------------------------------------------------------------------


def make_trainer(folder: Path, **options: Any) -> RunTrainer:
    set_seed(0)
    model = tiny_model(TriviumForConditionalGeneration, vocab_size=330, decoder_layers=1, dropout=0.1)
    args = quiet_arguments(folder, learning_rate=1e-2, num_train_epochs=2, **options)
    return RunTrainer(
        model,
        args,
        train_dataset=make_pairs(),
        data_collator=DataCollatorForSeq2Seq(SHARED, model=model),
        max_tokens=1000,
    )


@pytest.mark.trains
@pytest.mark.parametrize(
    ("accumulation", "workers"),
    [
        (2, 0),
        pytest.param(1, 0, marks=pytest.mark.slow(reason="all cases")),
        pytest.param(2, 2, marks=pytest.mark.slow(reason="worker processes")),
    ],
)
def test_resumed_run_is_bit_identical(accumulation: int, workers: int, tmp_path: Path) -> None:
    """Resume within the first epoch, at its end, and within the second; the schedule is in epochs."""
    common = {"gradient_accumulation_steps": accumulation, "dataloader_num_workers": workers}
    whole = make_trainer(tmp_path, save_strategy="steps", save_steps=1, **common)
    whole.train()
    steps = -(-len(whole.batches) // accumulation)
    assert whole.state.global_step == whole.state.max_steps == 2 * steps > 4
    assert whole.lr_scheduler.get_last_lr()[0] == 0
    for step in (1, steps, steps + 1):
        resumed = make_trainer(tmp_path, save_strategy="no", **common)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.state.global_step == 2 * steps
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], weight), (step, name)


def train_and_resume(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Return the weights of a whole run, and of one resumed in the second epoch."""
    whole = make_trainer(folder, save_strategy="steps", save_steps=1)
    whole.train()
    resumed = make_trainer(folder, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{whole.state.max_steps // 2 + 1}"))
    models = [trainer.accelerator.unwrap_model(trainer.model) for trainer in (whole, resumed)]
    return [{name: weight.detach().clone() for name, weight in model.named_parameters()} for model in models]


@pytest.mark.trains
@pytest.mark.slow(reason="two processes")
def test_two_processes_resume_bit_identical(tmp_path: Path) -> None:
    results = run_distributed(train_and_resume, tmp_path, folder=tmp_path, config=launch_configs()["cpu"])
    [first, *others] = [weights for result in results for weights in result]
    assert len(others) == 3
    for weights in others:
        assert [name for name in first if not torch.equal(weights[name], first[name])] == []


@pytest.mark.trains
def test_recipe_trains_with_subword_dropout(tmp_path: Path) -> None:
    """The tokenizer that is saved segments as usual."""
    more = ["learning.subword_dropout=0.3", "training.max_steps=2", "training.save_strategy='no'", "metrics=[]"]
    trainer = train(recipe_for(tmp_path, *more, "training.seed=3", "training.data_seed=5"))
    rows = trainer.train_dataset
    assert isinstance(rows, SubwordDropoutPairs)
    assert rows._seed == 5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    segmented = [rows[row]["input_ids"] for row in range(len(rows))]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in segmented]
    usual = tokenizer(texts)["input_ids"]
    assert sum(map(len, usual)) < sum(map(len, segmented))
    assert trainer.state.log_history[0]["batches_per_epoch"] == len(trainer.batches)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("numbers", ["learning.subword_dropout=1"], r"subword_dropout is 1\.0.*at least 0 and less than 1"),
        ("numbers", ["learning.subword_dropout=.nan"], r"subword_dropout is nan.*at least 0"),
        ("numbers", ["learning.subword_dropout=0.1"], r"0\.1, but inputs\.max_tokens is None\. Set.*max_tokens=4096"),
        (
            "numbers",
            ["task=denoising", "metrics=null", "training.predict_with_generate=false", "learning.subword_dropout=0.1"],
            r"only for translation; the task is denoising",
        ),
    ],
)
def test_invalid_dropout_is_refused(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.streaming=true", r"data\.streaming is True\. Set data\.streaming=false"),
        ("data.prepared=somewhere", r"data\.prepared is somewhere\. Set data\.prepared=null"),
        ("tokenizer.algorithm=unigram", r"tokenizer\.algorithm is unigram\. Set tokenizer\.algorithm=bpe"),
    ],
)
def test_conflicting_fields_are_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"learning\.subword_dropout is 0\.1, but " + message):
        recipe_for(tmp_path, "learning.subword_dropout=0.1", override)


@pytest.mark.parametrize("algorithm", ["unigram", "wordpiece", "char"])
def test_tokenizers_without_merges_are_refused(algorithm: Any) -> None:
    tokenizer = train_tokenizer(TARGET, vocab_size=560, algorithm=algorithm)
    with pytest.raises(ValueError, match=r"learning\.subword_dropout needs.*BPE"):
        make_pairs(tokenizer=tokenizer)
