"""English text to what a synthesizer reads: words written out, then symbols as numbers.

"Dr. Smith paid $3.50 on the 2nd." becomes "doctor smith paid three dollars, fifty cents on the second."
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

PAD, END = "_", "~"
SYMBOLS = PAD + END + " !',-.:;?" + "abcdefghijklmnopqrstuvwxyz"
"""What the network reads; the number of a symbol is its place. 0 is padding, `~` ends every text."""

LONGEST = 600
"""Symbols that one text may have: longer ones are to be parted into sentences."""

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]  # fmt: skip

TENS = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"
]  # fmt: skip

SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))  # fmt: skip

ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth",
    "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip

CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
}

ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "st": "saint",
    "jr": "junior", "sr": "senior", "prof": "professor", "capt": "captain", "col": "colonel",
    "gen": "general", "lt": "lieutenant", "sgt": "sergeant", "rev": "reverend", "hon": "honorable",
    "co": "company", "ltd": "limited", "vs": "versus", "etc": "et cetera",
}  # fmt: skip

SIGNS = {
    "&": " and ", "@": " at ", "%": " percent ", "+": " plus ", "=": " equals ", "°": " degrees ",
}  # fmt: skip

PUNCTUATION = str.maketrans({
    "‘": "'", "’": "'", "`": "'", "“": " ", "”": " ", '"': " ", "–": "-", "—": ", ", "…": "...",
    "(": ", ", ")": ", ", "[": ", ", "]": ", ", "/": " ", "*": " ", "_": " ", "#": " number ",
    "~": " ", "⁄": " over ", "\u00ad": "",
})  # fmt: skip


class TextError(ValueError):
    """A text that cannot be spoken; the message says why and what to do."""


def cardinal(n: int) -> str:
    """A whole number in words: 1921 is `one thousand nine hundred twenty one`. Below a quadrillion."""
    if n < 0:
        return f"minus {cardinal(-n)}"
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    for scale, name in (*SCALES, (100, "hundred")):
        if n >= scale:
            rest = f" {cardinal(n % scale)}" if n % scale else ""
            return f"{cardinal(n // scale)} {name}{rest}"
    raise AssertionError("every number from 100 on has a scale")


def ordinal(n: int) -> str:
    """A place in words: 21 is `twenty first`."""
    *head, last = cardinal(n).split()
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return " ".join([*head, ORDINALS.get(last, regular)])


def _digits(text: str) -> str:
    return " ".join(ONES[int(c)] for c in text)


def _number(match: re.Match) -> str:
    whole, _, part = match[0].replace(",", "").partition(".")
    # a leading zero, or very many digits: a code or a telephone number, not a quantity
    code = len(whole) > 15 or (len(whole) > 1 and whole[0] == "0")
    words = _digits(whole) if code else cardinal(int(whole))
    return f"{words} point {_digits(part)}" if part else words


def _year(match: re.Match) -> str:
    """1100 to 1999 without a comma are read as years are: `nineteen twenty one`, `the nineteen twenties`."""
    century, rest = int(match[1][:2]), int(match[1][2:])
    low = f"oh {ONES[rest]}" if rest < 10 else cardinal(rest)
    words = f"{cardinal(century)} {low if rest else 'hundred'}"
    if match[2]:
        words = f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"
    return words


def _money(match: re.Match) -> str:
    one, many, cent, cents = CURRENCIES[match["sign"]]
    scale = match["scale"]
    if scale:
        amount = re.sub(r"[\d,]+(\.\d+)?", _number, match["amount"], count=1)
        return f"{amount} {scale} {many}"
    whole, _, part = match["amount"].replace(",", "").partition(".")
    units, hundredths = int(whole), int(part.ljust(2, "0")[:2]) if part else 0
    words = []
    if units or not hundredths:
        words.append(f"{cardinal(units)} {one if units == 1 else many}")
    if hundredths:
        words.append(f"{cardinal(hundredths)} {cent if hundredths == 1 else cents}")
    return ", ".join(words)


def _time(match: re.Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    if not minute:
        return f"{cardinal(hour)} o'clock"
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"


NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"

RULES = (
    (re.compile(r"\bno\.\s*(?=\d)"), "number "),
    (re.compile(r"\b(\d{1,2}):(\d{2})\b"), _time),
    (
        re.compile(
            rf"(?P<sign>[$£€])\s?(?P<amount>{NUMBER})"
            r"(?:\s(?P<scale>thousand|million|billion|trillion)\b)?"
        ),
        _money,
    ),
    (
        re.compile(r"\b(\d[\d,]{0,18})(?:st|nd|rd|th)\b"),
        lambda m: ordinal(int(m[1].replace(",", ""))),
    ),
    (re.compile(r"(?<![\d.,])(1[1-9]\d\d)(s\b)?(?![\d%]|[.,]\d)"), _year),
    (re.compile(r"(?<![\w.])-(?=\d)"), "minus "),
    (re.compile(NUMBER), lambda m: f" {_number(m)} "),
)


def normalise(text: str) -> str:
    """Text as it is spoken: lower case, numbers, money, ordinals, times and abbreviations in words.

    Accents are taken off (café is read as cafe). Raises TextError when nothing to speak is left, or for
    letters and signs of another script (Chinese, Cyrillic, emoji): the message names them.
    """
    plain = unicodedata.normalize("NFKC", text).translate(PUNCTUATION).lower()
    for rule, word in RULES:
        plain = rule.sub(word, plain)
    for sign, word in SIGNS.items():
        plain = plain.replace(sign, word)
    plain = unicodedata.normalize("NFKD", plain)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"\b([a-z]+)\.", lambda m: ABBREVIATIONS.get(m[1], m[0]), plain)
    plain = " ".join(plain.split())
    strange = sorted({c for c in plain if c not in SYMBOLS[2:]})
    if strange:
        raise TextError(
            f"{' '.join(strange)!r} cannot be read: this synthesizer knows English letters, digits and "
            "punctuation. Write the text in English (names of another script in Latin letters)."
        )
    plain = re.sub(r"\s+([,.;:!?])", r"\1", plain)
    plain = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", plain)
    plain = re.sub(r"[,;:](?=[.!?])", "", plain).strip(" ,;:-")
    if not any(c.isalpha() for c in plain):
        raise TextError(
            "There is nothing to speak: the text is empty or holds no word. Write a sentence."
        )
    return plain


def encode(text: str) -> list[int]:
    """The symbol numbers of a text, normalised first, with the end sign. Raises TextError (see `normalise`)."""
    plain = normalise(text)
    if len(plain) >= LONGEST:
        raise TextError(
            f"The text has {len(plain)} letters when written out, {LONGEST - 1} at most: "
            "part it into sentences and join the sound."
        )
    return [SYMBOLS.index(c) for c in plain + END]


def decode(numbers: Sequence[int]) -> str:
    """The text of symbol numbers, without padding and end sign."""
    return "".join(SYMBOLS[i] for i in numbers).replace(PAD, "").replace(END, "")


def encode_batch(texts: Sequence[str], length: int = 0) -> tuple[Tensor, Tensor]:
    """Texts as symbols `(batch, letters)`, padded with 0 to the longest or to `length`; lengths `(batch,)`.

    Raises TextError for a text that cannot be spoken, ValueError when `length` is too small or there
    is no text at all.
    """
    every = [encode(text) for text in texts]
    if not every:
        raise ValueError("encode_batch needs at least one text")
    longest = max(map(len, every))
    if length and length < longest:
        raise ValueError(f"a text has {longest} symbols, the batch has room for {length}")
    out = torch.zeros(len(every), length or longest, dtype=torch.long)
    for row, numbers in zip(out, every, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    return out, torch.tensor([len(numbers) for numbers in every])
