"""Test the bundled corpus: its German and English match num2words and hand-written examples."""

import datetime
import random
import re

import pytest
from num2words import num2words

from trivium.data import numbers_corpus
from trivium.data.numbers import (
    CLOCK_HOURS,
    FIRST_DAY,
    KINDS,
    _date,
    _decimal,
    _price,
    _time,
    _weekday,
    english_cardinal,
    english_ordinal,
    english_year,
    german_cardinal,
    german_ordinal,
    german_year,
)

SAMPLE = [*range(1, 2100), *random.Random(1).sample(range(2100, 1_000_000), 2000), 100_000, 101_000, 999_999]


@pytest.fixture(scope="module")
def corpus():
    return numbers_corpus()


def reference(number, **options):
    # num2words writes a comma after thousands, which the corpus omits, and misspells 101,000 in German
    # ("einhunderteinstausend").
    return num2words(number, **options).replace(",", "").replace("einstausend", "eintausend")


def test_english_numbers_match_num2words():
    assert english_cardinal(0) == "zero"
    for number in SAMPLE:
        assert english_cardinal(number) == reference(number)
        assert english_ordinal(number) == reference(number, to="ordinal")


def test_german_numbers_match_num2words():
    assert german_cardinal(0) == "null"
    for number in SAMPLE:
        assert german_cardinal(number) == reference(number, lang="de")
        # num2words writes "hundertste" and "tausendste" without "ein"; the corpus always includes it.
        one = "ein" if number in (100, 1000) else ""
        assert german_ordinal(number) == one + reference(number, lang="de", to="ordinal")


def test_years_match_num2words():
    for year in range(1100, 2100):
        assert english_year(year) == num2words(year, to="year")
        assert german_year(year) == num2words(year, to="year", lang="de")


@pytest.mark.parametrize(
    ("hour", "minute", "english", "german"),
    [
        (7, 30, "half past seven", "halb acht"),
        (0, 30, "half past twelve", "halb eins"),
        (11, 30, "half past eleven", "halb zwölf"),
        (8, 45, "quarter to nine", "Viertel vor neun"),
        (1, 15, "quarter past one", "Viertel nach eins"),
        (0, 45, "quarter to one", "Viertel vor eins"),
        (3, 25, "twenty-five past three", "fünfundzwanzig nach drei"),
        (3, 35, "twenty-five to four", "fünfundzwanzig vor vier"),
        (1, 0, "one o'clock", "ein Uhr"),
        (0, 0, "twelve o'clock", "zwölf Uhr"),
        (11, 55, "five to twelve", "fünf vor zwölf"),
    ],
)
def test_times(hour, minute, english, german):
    # There are eight dates for each time in steps of five minutes: one per weekday, and one without.
    index = (hour * 60 + minute) // 5 * 8
    assert _time(index + 7) == (english, german)
    assert _time(index + 6) == (f"on Sunday at {english}", f"am Sonntag um {german}")


@pytest.mark.parametrize(
    ("hour", "english", "german"),
    [
        (7, "half past seven in the morning", "halb acht morgens"),
        (13, "half past one in the afternoon", "halb zwei nachmittags"),
        (19, "half past seven in the evening", "halb acht abends"),
        (23, "half past eleven at night", "halb zwölf nachts"),
        (0, "half past twelve at night", "halb eins nachts"),
    ],
)
def test_times_of_day(hour, english, german):
    row = next(row for row, entry in enumerate(CLOCK_HOURS) if entry[0] == hour and entry[1])
    index = (row * 60 + 30) // 5 * 8
    assert _time(index + 7) == (english, german)
    assert _time(index) == (f"on Monday at {english}", f"am Montag um {german}")


def test_dates():
    assert _date(0) == ("the first of January sixteen hundred", "der erste Januar sechzehnhundert")
    assert _date(59) == (
        "the twenty-ninth of February sixteen hundred",
        "der neunundzwanzigste Februar sechzehnhundert",
    )
    assert _date((datetime.date(1984, 5, 21) - FIRST_DAY).days) == (
        "the twenty-first of May nineteen eighty-four",
        "der einundzwanzigste Mai neunzehnhundertvierundachtzig",
    )
    assert _date((datetime.date(2000, 1, 7) - FIRST_DAY).days) == (
        "the seventh of January two thousand",
        "der siebte Januar zweitausend",
    )
    assert _weekday(7 * 366 - 1) == ("Sunday the thirty-first of December", "Sonntag, der einunddreißigste Dezember")
    assert _weekday(7 * 62) == ("Monday the third of March", "Montag, der dritte März")


def test_prices_and_decimals():
    assert _price(0) == ("one euro", "ein Euro")
    assert _price(1) == ("one euro and one cent", "ein Euro und ein Cent")
    assert _price(2021) == ("twenty-one euros and twenty-one cents", "einundzwanzig Euro und einundzwanzig Cent")
    assert _decimal(101) == ("one point zero one", "eins Komma null eins")
    assert _decimal(314) == ("three point one four", "drei Komma eins vier")


def test_sentences_map_one_to_one_in_both_directions():
    pairs = [make(index) for available, _, make in KINDS for index in range(min(available, 10_000))]
    assert len({english for english, _ in pairs}) == len({german for _, german in pairs}) == len(pairs)


def test_last_pair_of_every_kind():
    for available, _, make in KINDS:
        english, german = make(available - 1)
        assert english
        assert german


def test_sizes_and_disjoint_splits(corpus):
    assert corpus.num_rows == {"train": 20_000, "validation": 1_000, "test": 1_000}
    for side in ("source", "target"):
        sentences = [sentence for split in corpus.values() for sentence in split[side]]
        assert len(set(sentences)) == 22_000


def test_train_split_has_every_word_and_compound_part(corpus):
    english = {word for line in corpus["train"]["source"] for word in re.split("[ -]", line)}
    german = "\n".join(corpus["train"]["target"])
    for split in ("validation", "test"):
        assert {word for line in corpus[split]["source"] for word in re.split("[ -]", line)} <= english
    for number in [*range(1, 20), *range(20, 100, 10)]:
        assert set(re.split("[ -]", english_cardinal(number))) <= english
        assert set(re.split("[ -]", english_ordinal(number))) <= english
        assert german_cardinal(number) in german
        assert german_ordinal(number) in german


def test_corpus_is_reproducible_with_seed():
    sizes = (50, 5, 5)
    first = numbers_corpus(*sizes)["train"]["target"]
    assert list(first) == list(numbers_corpus(*sizes)["train"]["target"])
    assert list(first) != list(numbers_corpus(*sizes, seed=1)["train"]["target"])


def test_default_corpus_is_unchanged(corpus):
    # Published models and benchmark figures depend on these splits, so they must never change.
    assert corpus["train"][0] == {
        "source": "on Saturday at twenty past eight in the evening",
        "target": "am Samstag um zwanzig nach acht abends",
    }
    assert corpus["test"][999] == {
        "source": "seven thousand and eight",
        "target": "siebentausendacht",
    }


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        numbers_corpus(train_samples=0)
    with pytest.raises(ValueError, match=r"most 26400 samples.*all"):
        numbers_corpus(train_samples=1_000_000)
    assert numbers_corpus(train_samples=24_400).num_rows["train"] == 24_400
