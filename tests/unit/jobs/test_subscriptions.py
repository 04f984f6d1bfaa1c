"""The line of subscribers that have text."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from jobs.subscriptions import Subscription, Turns
from tests.servers import PATIENCE


class Watched(Subscription):
    """Says when its subscriber begins to wait."""

    def __init__(self, turns: Turns) -> None:
        super().__init__(turns)
        self.waits = threading.Event()
        wait = self._changed.wait

        def watched(timeout: float | None = None) -> bool:
            self.waits.set()
            return wait(timeout)

        self._changed.wait = watched  # type: ignore[method-assign]  # on purpose


def test_a_subscriber_that_took_its_text_already_is_not_woken_for_it() -> None:
    """It came back for other reasons while it stood in the line. The turn is the next one's."""
    turns = Turns()
    early, late = Watched(turns), Watched(turns)
    with ThreadPoolExecutor(2) as pool:
        early_read = pool.submit(early.take, PATIENCE)
        late_read = pool.submit(late.take, PATIENCE)
        assert early.waits.wait(PATIENCE)
        assert late.waits.wait(PATIENCE)

        # The line has one whose text is gone, then one with text.
        late.put([((1, 0), {"text": "a"})])
        turns._line.extend([early, late])
        turns.pass_on()

        assert late_read.result(PATIENCE) == ([{"text": "a"}], False)
        assert not early_read.done()
        early.put([((1, 0), {"changed": "1"})])
        early.wake()
        assert early_read.result(PATIENCE) == ([{"changed": "1"}], False)
