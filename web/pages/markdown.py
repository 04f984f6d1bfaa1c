"""Markdown as HTML that can do no harm: no HTML of the text's own, no images, and links to other sites only.

The grammar is CommonMark with tables, by markdown-it-py. Headings are two levels lower than in the text, since
they are within a page that has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from web.pages.marks import marked

#: Schemes of links. All others, and links without one, stay text.
SCHEMES = ("http", "https", "mailto")
#: The maximum number of characters that are rendered. Longer texts are shown as they are.
MAX_TEXT = 200_000
_HEADINGS = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6"}


@lru_cache(maxsize=64)
def render(text: str) -> Markup | None:
    """Return a text as HTML; None if it is too long."""
    if len(text) > MAX_TEXT:
        return None
    return Markup(_MARKDOWN.render(text))  # noqa: S704 (see the module's description)


def _is_allowed(url: str) -> bool:
    try:
        return urlsplit(url).scheme.lower() in SCHEMES
    except ValueError:
        return False


class _Renderer(RendererHTML):
    """Writes tokens as HTML, with marks of deceptive characters, and without inline styles."""

    def text(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return marked(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return f"<code>{marked(tokens[idx].content)}</code>"

    def code_block(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        # Wide code scrolls, with the keyboard as well.
        return f'<pre tabindex="0"><code>{marked(tokens[idx].content)}</code></pre>\n'

    def fence(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return self.code_block(tokens, idx)

    def link_open(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        token = tokens[idx]
        url = str(token.attrs["href"])
        # Where it leads, whatever its text says.
        token.attrs = {"href": url, "title": url, "rel": "nofollow noopener noreferrer"}
        return self.renderToken(tokens, idx, {}, {})

    def renderToken(  # noqa: N802 (the library's name)
        self, tokens: Sequence[Token], idx: int, options: Any, env: Any
    ) -> str:
        token = tokens[idx]
        token.tag = _HEADINGS.get(token.tag, token.tag)
        token.attrs.pop("style", None)  # Of table cells: the policy allows no inline styles.
        return super().renderToken(tokens, idx, options, env)


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer)
    markdown.enable("table").disable(["image", "html_block", "html_inline"])
    markdown.validateLink = _is_allowed  # type: ignore[method-assign]  # markdown-it's way
    return markdown


_MARKDOWN = _markdown()
