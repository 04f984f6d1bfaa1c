"""What is known of a text that a server elsewhere generates."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from worker.engine.interface import Completion, FinishReason, Generation
from worker.engine.tokenization.stop_strings import StopStrings

#: Servers' words for why a text ended: OpenAI's, and TGI's.
_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP_STRING,
    "length": FinishReason.LENGTH,
}


@dataclass
class Progress:
    """The text of a request so far. Its pieces go to the generation."""

    generation: Generation
    max_tokens: int
    deltas: list[str] = field(default_factory=list)
    #: The server's word for why the text ended; None as long as it has not.
    finish_reason: str | None = None
    #: Why it must not go on, if its server does not respond any more.
    interrupted: str | None = None
    _first_token_at: float | None = None
    #: Looks for the stop strings, if there are any.
    _stop: StopStrings | None = None
    _usage: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a text: no server has generated a piece of it yet."""
        stop = self.generation.request.sampling.stop
        self._stop = StopStrings(stop) if stop else None
        self.finish_reason = None

    def take(self, event: dict[str, Any]) -> bool:
        """Take the text, the reason of its end, and the numbers of tokens from an event of a stream.

        Returns:
            whether to go on. TGI and `transformers serve` return the stop string, too, and then end. A server that goes
            on after it knows no stop strings; what it generates is not needed.
        """
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if self._first_token_at is None:
                self._first_token_at = time.monotonic()
            if text := _valid(choice.get("text") or ""):
                if self._stopped:
                    return False
                self._emit(text if self._stop is None else self._stop.push(text))
            if reason := choice.get("finish_reason"):
                self.finish_reason = str(reason)
            # vLLM and SGLang name the string. Others say "stop" of a stop token, too.
            if isinstance(choice.get("stop_reason") or choice.get("matched_stop"), str):
                self.finish_reason = "stop_sequence"
        return True

    @property
    def ended(self) -> bool:
        """Whether the text is complete: nothing that its server does afterwards changes it."""
        return self._stopped or self.finish_reason in _FINISH_REASONS

    def end(self) -> Completion:
        """Return the completion of a text that has ended."""
        if self._stop is not None:
            self._emit(self._stop.finish())
        if self._stopped or self.finish_reason is None:
            return self.completion(FinishReason.STOP_STRING)
        return self.completion(_FINISH_REASONS[self.finish_reason])

    def completion(self, reason: FinishReason) -> Completion:
        """Return the completion of a text that ends here. What was held back belongs to it, and is not streamed."""
        if self._stop is not None and (held := self._stop.finish()):
            self.deltas.append(held)
        prompt_tokens = _number(self._usage.get("prompt_tokens"))
        output_tokens = _number(self._usage.get("completion_tokens"))
        return Completion(
            text="".join(self.deltas),
            deltas=self.deltas,
            prompt_tokens=prompt_tokens or 0,
            output_tokens=output_tokens or 0,
            finish_reason=reason,
            max_output_tokens=self.max_tokens,
            first_token_at=self._first_token_at,
            tokens_known=prompt_tokens is not None and output_tokens is not None,
        )

    @property
    def _stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stop is not None and self._stop.found

    def _emit(self, text: str) -> None:
        if text:
            self.deltas.append(text)
            self.generation.emit(text)


def _valid(text: str) -> str:
    """Return a text with lone surrogates, which no database takes, replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
