"""Words: how texts and queries are cut into words, the same for both databases.

A text becomes a sequence of words. Letters are compared after NFKC and case folding, and without accents:
``Ærøskøbing`` is ``aeroskobing``. Everything that is neither a letter, a digit nor a mark separates words.
Scripts that put no spaces between words (Chinese, Japanese, Thai, …), and Korean, whose words have endings, are
cut into single characters.

All of it is one `str.translate`: each character becomes what is left of it, and a space where a word ends.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise

#: The maximum number of characters of a word; a longer one counts as its beginning.
MAX_WORD = 64
#: Between the words of two texts of a job, so that no phrase goes from one to the next. No word has it.
BREAK = "_"

#: Letters that Unicode does not decompose.
_PLAIN = {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "ŧ": "t"}
#: First and last character of the scripts that are cut into single characters.
_SINGLE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3040, 0x31FF),  # Hiragana, Katakana, Bopomofo
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),  # Hangul
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
#: Marks of Latin, Greek, Cyrillic, Hebrew and Arabic letters, which people leave out when they search.
_ACCENTS = (
    (0x0300, 0x036F),
    (0x0483, 0x0489),
    (0x0591, 0x05C7),
    (0x0610, 0x061A),
    (0x064B, 0x065F),
    (0x0670, 0x0670),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20F0),
    (0xFE20, 0xFE2F),
)
#: Letters up to here, and in Latin's and Greek's extensions, are decomposed to lose their accents. Those of
#: other scripts are not: a Hangul syllable would become several letters, and が would become か.
_ACCENTED = ((0, 0x058F), (0x1E00, 0x1FFF))


class _Folding(dict[int, str]):
    """What each character becomes, found when it first occurs."""

    def __missing__(self, code: int) -> str:
        folded = "".join(map(_fold, _spread(chr(code))))
        self[code] = folded
        return folded


def _spread(character: str) -> str:
    """Return a character in NFKC, case folded, with its accents as characters of their own."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())
    return "".join(
        unicodedata.normalize("NFD", c) if _within(c, _ACCENTED) else c
        for c in "".join(_PLAIN.get(c, c) for c in plain)
    )


def _fold(character: str) -> str:
    """Return what a character of `_spread` becomes."""
    category = unicodedata.category(character)
    if _within(character, _ACCENTS) or character in "\N{SOFT HYPHEN}\N{ZERO WIDTH JOINER}":
        return ""
    if category[0] not in "LNM":
        return " "
    return f" {character} " if is_single(character) else _PLAIN.get(character, character)


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)


def is_single(word: str) -> bool:
    """Return whether a word is a character of a script without spaces."""
    return len(word) == 1 and _within(word, _SINGLE)


FOLDING = _Folding()


def canonical(text: str) -> str:
    """Return a text whose characters can be folded one by one: in NFC, which reads the same."""
    if "\uff9e" in text or "\uff9f" in text:  # The voice marks of half-width kana.
        text = unicodedata.normalize("NFKC", text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Return a canonical text with spaces around its words, and in the place of all that is no word."""
    return text.translate(FOLDING)


def words(text: str) -> list[str]:
    """Return the words of a text, in order."""
    return [word[:MAX_WORD] for word in fold(canonical(text)).split()]


def terms(sequence: list[str]) -> set[str]:
    """Return the terms that the index has of a sequence of words.

    They are the words and, where single characters follow each other, pairs of them: one character is in too
    many texts to find anything.
    """
    found = set(sequence)
    found.update(a + b for a, b in pairwise(sequence) if is_single(a) and is_single(b))
    found.discard(BREAK)
    return found


def required_terms(phrase: tuple[str, ...]) -> tuple[list[str], bool]:
    """Return the terms that every text with a phrase has, and whether every text with them has the phrase.

    The last term is of the last word.
    """
    required: list[str] = []
    paired = False
    for position, word in enumerate(phrase):
        following = phrase[position + 1] if position + 1 < len(phrase) else ""
        if is_single(word) and is_single(following):
            required.append(word + following)
            paired = True
        else:
            if not (paired and is_single(word)):
                required.append(word)
            paired = False
    return required, len(required) == 1
