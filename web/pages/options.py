"""How a reader wants a job's page: all of it is in the page's address, so that it works without a script."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from flask import request, url_for

#: How the changes between draft and final are shown, in the order in which the key `d` goes through them.
DIFFS = {"side": "side by side", "inline": "inline", "off": "off"}


@dataclass(frozen=True)
class Options:
    """How a job's page is shown. What the address says otherwise, or does not say, is the default."""

    diff: str = "side"
    #: Whether the final answer is its exact text, and not rendered Markdown.
    exact: bool = False
    #: Whether all invisible characters are shown as marks.
    invisible: bool = False
    #: Whether the record is compared with the log.
    verify: bool = False

    @classmethod
    def of_request(cls) -> Self:
        """Return the options in the address of the current request."""
        diff = request.args.get("diff", "")
        return cls(
            diff=diff if diff in DIFFS else "side",
            exact=request.args.get("text") == "exact",
            invisible=request.args.get("invisible") == "1",
            verify=request.args.get("verify") == "1",
        )

    @property
    def next_diff(self) -> str:
        """The name of the next way to show changes."""
        names = list(DIFFS)
        return names[(names.index(self.diff) + 1) % len(names)]

    def url(self, job_id: str, anchor: str | None = None, **changes: Any) -> str:
        """Return the address of a job's page with these options, or with some of them changed."""
        return url_for(
            "pages.job",
            job_id=job_id,
            _anchor=anchor,
            **replace(self, **changes).parameters(),  # type: ignore[arg-type]  # names of parameters
        )

    def parameters(self) -> dict[str, str | None]:
        """Return the parameters of an address that has these options; None for a default."""
        return {
            "diff": None if self.diff == "side" else self.diff,
            "text": "exact" if self.exact else None,
            "invisible": "1" if self.invisible else None,
            "verify": "1" if self.verify else None,
        }
