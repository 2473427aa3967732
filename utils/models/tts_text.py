"""English text to the symbols that a synthesizer reads: numbers and abbreviations in words, then indices.

"Dr. Smith paid $3.50 on the 2nd." becomes "doctor smith paid three dollars, fifty cents on the second."
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor, nn

END = "~"
SYMBOLS = "_" + END + " !',-.:;?" + "abcdefghijklmnopqrstuvwxyz"
"""The input alphabet; a symbol is encoded as its index. 0 is padding, `~` ends every text."""

LONGEST = 600
"""Most symbols of one text; longer texts must be split into sentences."""

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]  # fmt: skip

TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))

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
    """An ordinal number in words: 21 is `twenty first`."""
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
    """1100 to 1999 without a comma are read as years: `nineteen twenty one`, `the nineteen twenties`."""
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
    (r"\bno\.\s*(?=\d)", "number "),
    (r"\b(\d{1,2}):(\d{2})\b", _time),
    (
        rf"(?P<sign>[$£€])\s?(?P<amount>{NUMBER})"
        r"(?:\s(?P<scale>thousand|million|billion|trillion)\b)?",
        _money,
    ),
    (r"\b(\d[\d,]{0,18})(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1].replace(",", "")))),
    (r"(?<![\d.,])(1[1-9]\d\d)(s\b)?(?![\d%]|[.,]\d)", _year),
    (r"(?<![\w.])-(?=\d)", "minus "),
    (NUMBER, lambda m: f" {_number(m)} "),
)
"""Patterns of numbers and how they are written out, in this order."""


def expand_text(text: str) -> str:
    """Text as it is spoken: lower case, with numbers, money, ordinals, times and abbreviations in words.

    Accents are removed (café is read as cafe). Raises TextError for a text without words, and for letters and
    signs of another script (Chinese, Cyrillic, emoji), which the message names.
    """
    plain = unicodedata.normalize("NFKC", text).translate(PUNCTUATION).lower()
    for pattern, words in RULES:
        plain = re.sub(pattern, words, plain)
    for sign, word in SIGNS.items():
        plain = plain.replace(sign, word)
    plain = unicodedata.normalize("NFKD", plain)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"\b([a-z]+)\.", lambda m: ABBREVIATIONS.get(m[1], m[0]), plain)
    plain = " ".join(plain.split())
    unknown = sorted({c for c in plain if c not in SYMBOLS[2:]})
    if unknown:
        raise TextError(
            f"{' '.join(unknown)!r} cannot be read: this synthesizer knows English letters, digits and "
            "punctuation. Write the text in English (names of another script in Latin letters)."
        )
    plain = re.sub(r"\s+([,.;:!?])", r"\1", plain)
    plain = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", plain)
    plain = re.sub(r"[,;:](?=[.!?])", "", plain).strip(" ,;:-")
    if not any(c.isalpha() for c in plain):
        raise TextError("There is nothing to speak: the text is empty or contains no word. Write a sentence.")
    return plain


def encode(text: str) -> list[int]:
    """The symbol indices of a text after `expand_text`, with the end symbol. Raises TextError."""
    plain = expand_text(text)
    if len(plain) >= LONGEST:
        raise TextError(
            f"The text has {len(plain)} letters when written out, {LONGEST - 1} at most: "
            "split it into sentences and join the sound."
        )
    return [SYMBOLS.index(c) for c in plain + END]


def encode_batch(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts as symbol indices `(batch, letters)`, padded with 0, and their lengths `(batch,)`.

    Raises TextError for a text that cannot be spoken, ValueError when there is no text.
    """
    if not texts:
        raise ValueError("encode_batch needs at least one text")
    rows = [torch.tensor(encode(text)) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([*map(len, rows)])
