"""The bundled `numbers` corpus: numbers, dates, times and prices, spelled out in English and German.

The corpus is generated from rules, so it needs no download, and a small model learns it in minutes. It is a real
translation task nevertheless: German puts units before tens ("zweiundvierzig"), counts half hours toward the next hour
("halb acht" is half past seven), writes compounds as one word, and inflects ordinals.

Conventions where a language allows several variants:

- English is British: "three hundred and forty-two", without a comma after the thousands.
- German always spells out the one: "einhundert", "eintausend", and thus "der einhundertste".
- Years up to 1999 are read in hundreds: "nineteen oh-five" and "neunzehnhundertfünf".
- Clock times use twelve hours and steps of five minutes, with an optional weekday and part of the day.

Every sentence has exactly one translation, in both directions.
"""

import datetime
import random
import re
from collections.abc import Callable

from datasets import Dataset, DatasetDict

Pair = tuple[str, str]


def _words(text: str) -> list[str]:
    return text.split()


# --- English ---------------------------------------------------------------------------------------------------------

ENGLISH_SMALL = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
ENGLISH_TENS = _words("- - twenty thirty forty fifty sixty seventy eighty ninety")
ENGLISH_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
ENGLISH_MONTHS = _words("January February March April May June July August September October November December")
ENGLISH_WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def english_cardinal(number: int) -> str:
    """Spell out a number from 0 to 999,999 in English: 342 is "three hundred and forty-two"."""
    if number < 20:
        return ENGLISH_SMALL[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return ENGLISH_TENS[tens] + (f"-{ENGLISH_SMALL[rest]}" if rest else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, size)
    words = f"{english_cardinal(count)} {name}"
    if not rest:
        return words
    return f"{words} {'and ' if rest < 100 else ''}{english_cardinal(rest)}"


def english_ordinal(number: int) -> str:
    """Spell out an ordinal number in English: 342 is "three hundred and forty-second"."""
    *head, last = re.split(r"(?<=[ -])", english_cardinal(number))
    if last.endswith("y"):
        return "".join(head) + last[:-1] + "ieth"
    return "".join(head) + ENGLISH_ORDINALS.get(last, last + "th")


def english_year(year: int) -> str:
    """Spell out a year from 1100 to 2099 in English: 1984 is "nineteen eighty-four"."""
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010:
        return english_cardinal(year)
    if not rest:
        return f"{english_cardinal(century)} hundred"
    return f"{english_cardinal(century)} {'oh-' if rest < 10 else ''}{english_cardinal(rest)}"


# --- German ----------------------------------------------------------------------------------------------------------

GERMAN_SMALL = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
)
GERMAN_TENS = _words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
GERMAN_ORDINALS = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
GERMAN_MONTHS = _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember")
GERMAN_WEEKDAYS = _words("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag")


def german_cardinal(number: int, one: str = "eins") -> str:
    """Spell out a number from 0 to 999,999 in German: 342 is "dreihundertzweiundvierzig".

    Args:
        number: The number.
        one: Form of a final one: "eins" if it stands alone, "ein" before a noun.
    """
    if number == 1:
        return one
    if number < 20:
        return GERMAN_SMALL[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return (f"{german_cardinal(rest, 'ein')}und" if rest else "") + GERMAN_TENS[tens]
    size, name = (1000, "tausend") if number >= 1000 else (100, "hundert")
    count, rest = divmod(number, size)
    return german_cardinal(count, "ein") + name + (german_cardinal(rest, one) if rest else "")


def german_ordinal(number: int) -> str:
    """Spell out an ordinal number in German, in the form after "der": 342 is "dreihundertzweiundvierzigste"."""
    rest = number % 100
    if not 1 <= rest < 20:
        return german_cardinal(number) + "ste"
    head = german_cardinal(number - rest) if number > rest else ""
    return head + GERMAN_ORDINALS.get(rest, german_cardinal(rest) + "te")


def german_year(year: int) -> str:
    """Spell out a year from 1100 to 2099 in German: 1984 is "neunzehnhundertvierundachtzig"."""
    century, rest = divmod(year, 100)
    if year >= 2000:
        return german_cardinal(year)
    return german_cardinal(century) + "hundert" + (german_cardinal(rest) if rest else "")


# --- Sentence pairs: each function generates the pair with a given index, so that only sampled pairs are generated ---


def _cardinal(index: int) -> Pair:
    return english_cardinal(index), german_cardinal(index)


def _large_cardinal(index: int) -> Pair:
    return _cardinal(10_000 + index)


def _ordinal(index: int) -> Pair:
    return f"the {english_ordinal(index + 1)}", f"der {german_ordinal(index + 1)}"


def _day(date: datetime.date) -> Pair:
    english = f"the {english_ordinal(date.day)} of {ENGLISH_MONTHS[date.month - 1]}"
    return english, f"der {german_ordinal(date.day)} {GERMAN_MONTHS[date.month - 1]}"


def _date(index: int) -> Pair:
    date = FIRST_DAY + datetime.timedelta(days=index)
    english, german = _day(date)
    return f"{english} {english_year(date.year)}", f"{german} {german_year(date.year)}"


def _weekday(index: int) -> Pair:
    day, weekday = divmod(index, 7)
    english, german = _day(datetime.date(2000, 1, 1) + datetime.timedelta(days=day))
    return f"{ENGLISH_WEEKDAYS[weekday]} {english}", f"{GERMAN_WEEKDAYS[weekday]}, {german}"


def _time(index: int) -> Pair:
    index, weekday = divmod(index, 8)
    row, five_minutes = divmod(index, 12)
    hour, english_part, german_part = CLOCK_HOURS[row]
    english, german = _clock(hour % 12 or 12, 5 * five_minutes)
    if weekday < 7:
        english, german = f"on {ENGLISH_WEEKDAYS[weekday]} at {english}", f"am {GERMAN_WEEKDAYS[weekday]} um {german}"
    return english + english_part, german + german_part


def _clock(hour: int, minute: int) -> Pair:
    following = hour % 12 + 1
    if minute == 0:
        return f"{english_cardinal(hour)} o'clock", f"{german_cardinal(hour, 'ein')} Uhr"
    if minute == 30:
        # German counts half hours toward the following hour.
        return f"half past {english_cardinal(hour)}", f"halb {german_cardinal(following)}"
    if minute < 30:
        english, german, reference = "past", "nach", hour
    else:
        english, german, reference, minute = "to", "vor", following, 60 - minute
    english_minutes = "quarter" if minute == 15 else english_cardinal(minute)
    german_minutes = "Viertel" if minute == 15 else german_cardinal(minute)
    return (
        f"{english_minutes} {english} {english_cardinal(reference)}",
        f"{german_minutes} {german} {german_cardinal(reference)}",
    )


def _price(index: int) -> Pair:
    euros, cents = index // 100 + 1, index % 100
    english = f"{english_cardinal(euros)} {'euro' if euros == 1 else 'euros'}"
    german = f"{german_cardinal(euros, 'ein')} Euro"
    if not cents:
        return english, german
    english += f" and {english_cardinal(cents)} {'cent' if cents == 1 else 'cents'}"
    return english, f"{german} und {german_cardinal(cents, 'ein')} Cent"


def _decimal(index: int) -> Pair:
    whole, digits = divmod(index, 100)
    tenths, hundredths = divmod(digits, 10)
    english = f"{english_cardinal(whole)} point {english_cardinal(tenths)} {english_cardinal(hundredths)}"
    return english, f"{german_cardinal(whole)} Komma {german_cardinal(tenths)} {german_cardinal(hundredths)}"


# Hours with and without a part of the day, except 11 a.m. and noon, which are irregular in German.
CLOCK_HOURS = (
    [(hour, "", "") for hour in range(12)]
    + [(hour, " in the morning", " morgens") for hour in range(5, 11)]
    + [(hour, " in the afternoon", " nachmittags") for hour in range(13, 18)]
    + [(hour, " in the evening", " abends") for hour in range(18, 23)]
    + [(hour, " at night", " nachts") for hour in (23, 0, 1, 2, 3)]
)
FIRST_DAY, LAST_DAY = datetime.date(1600, 1, 1), datetime.date(2099, 12, 31)

# Number of distinct pairs, percentage of the corpus, and generating function of each kind of sentence.
KINDS: list[tuple[int, int, Callable[[int], Pair]]] = [
    (10_000, 20, _cardinal),
    (990_000, 20, _large_cardinal),
    (9_999, 10, _ordinal),
    ((LAST_DAY - FIRST_DAY).days + 1, 15, _date),
    (7 * 366, 7, _weekday),
    (len(CLOCK_HOURS) * 12 * 8, 12, _time),
    (99 * 100, 8, _price),
    (1000 * 100, 8, _decimal),
]


def numbers_corpus(
    train_samples: int = 20_000, validation_samples: int = 1_000, test_samples: int = 1_000, seed: int = 0
) -> DatasetDict:
    """Generate the corpus, with English in the column `source` and German in `target`.

    No sentence of either language occurs twice, within a split or across splits. The result is deterministic.

    Args:
        train_samples: Number of pairs in the split `train`.
        validation_samples: Number of pairs in the split `validation`.
        test_samples: Number of pairs in the split `test`.
        seed: Seed of the sampling and of the order.

    Returns:
        The splits `train`, `validation` and `test`.

    Raises:
        ValueError: A split would be empty, or there are not enough distinct sentences of some kind.
    """
    sizes = {"train": train_samples, "validation": validation_samples, "test": test_samples}
    if min(sizes.values()) < 1:
        raise ValueError(f"The sizes of the splits are {sizes}, but each split needs at least one sample.")
    total = sum(sizes.values())
    generator = random.Random(seed)
    pairs: list[Pair] = []
    for available, share, make in KINDS:
        # Round up: the surplus pairs are dropped after shuffling.
        count = -(-total * share // 100)
        if count > available:
            largest = min(available * 100 // share for available, share, _ in KINDS)
            raise ValueError(
                f"The sizes of the splits are {sizes}, but the corpus has at most {largest} samples in all."
            )
        pairs += [make(index) for index in generator.sample(range(available), count)]
    generator.shuffle(pairs)
    splits, start = DatasetDict(), 0
    for split, size in sizes.items():
        source, target = zip(*pairs[start : start + size], strict=True)
        splits[split] = Dataset.from_dict({"source": source, "target": target})
        start += size
    return splits
