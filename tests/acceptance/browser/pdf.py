"""The text of a PDF that Chromium printed."""

from __future__ import annotations

import re
import zlib

_OBJECT = re.compile(rb"\n(\d+) 0 obj\n(.*?)\nendobj", re.S)


def text_of(pdf: bytes) -> str:
    """Return the characters of a PDF in the order of its content, without white space.

    Skia, which makes Chromium's PDFs, names each font in the whole file, writes every character as the number of
    a glyph, and adds a table from these to Unicode to each font.
    """
    objects = {int(number): body for number, body in _OBJECT.findall(pdf)}
    fonts = {
        name: _characters(_stream(objects[int(table[1])]))
        for name, number in set(re.findall(rb"/(F\d+) (\d+) 0 R", pdf))
        if (table := re.search(rb"/ToUnicode (\d+) 0 R", objects[int(number)]))
    }
    found = []
    for body in objects.values():
        content = _stream(body) if b"stream\n" in body else b""
        if b" Tf" not in content:
            continue
        font: dict[int, str] = {}
        for name, glyphs in re.findall(rb"/(F\d+) [\d.]+ Tf|<([0-9A-Fa-f]+)>", content):
            if name:
                font = fonts.get(name, {})
            numbers = (glyphs[place : place + 4] for place in range(0, len(glyphs), 4))
            found += [font.get(int(number, 16), "") for number in numbers]
    return "".join("".join(found).split())


def _stream(body: bytes) -> bytes:
    data = body.split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0]
    return zlib.decompress(data) if b"/FlateDecode" in body.split(b"stream\n", 1)[0] else data


def _characters(table: bytes) -> dict[int, str]:
    """Return the characters of a font's glyphs."""
    found = {}
    for block in re.findall(rb"beginbfchar\n(.*?)endbfchar", table, re.S):
        for glyph, character in re.findall(rb"<(\w+)> <(\w+)>", block):
            found[int(glyph, 16)] = bytes.fromhex(character.decode()).decode("utf-16-be")
    for block in re.findall(rb"beginbfrange\n(.*?)endbfrange", table, re.S):
        for first, last, character in re.findall(rb"<(\w+)> <(\w+)> <(\w+)>", block):
            start = int(first, 16)
            for glyph in range(start, int(last, 16) + 1):
                found[glyph] = chr(int(character, 16) + glyph - start)
    return found
