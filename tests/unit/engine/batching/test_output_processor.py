"""Deltas depend only on the number of tokens."""

from __future__ import annotations

import random
from typing import Any

from jobs.pipeline import Role, Sampling
from worker.engine.batching.output_processor import (
    OutputProcessor,
    SequenceUpdate,
    whole_delta_tokens,
)
from worker.engine.batching.sequence import Sequence
from worker.engine.interface import Completion, EngineError, FinishReason, Generation, Request
from worker.engine.tokenization.stopping_detokenizer import make_detokenizer


def test_deltas_do_not_depend_on_when_tokens_arrive(byte_fallback: Any) -> None:
    tokenizer = byte_fallback
    tokens = tokenizer.encode("gravity pulls bonito kanduren", add_special_tokens=False)
    deltas = []
    for flushes in (range(1, len(tokens)), [len(tokens)], [3, 9, 10]):
        output, sequence = OutputProcessor(tokenizer), _sequence(tokenizer)
        for num_known in flushes:
            start, end = sequence.num_emitted_tokens, whole_delta_tokens(num_known)
            output.put([SequenceUpdate(sequence, start, tokens[start:end])])
            sequence.num_emitted_tokens = end
        sequence.output_token_ids = tokens
        rest = tokens[sequence.num_emitted_tokens :]
        output.put(
            [SequenceUpdate(sequence, sequence.num_emitted_tokens, rest, FinishReason.LENGTH)]
        )
        output.close()
        completion = sequence.generation.result(0)
        assert completion.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert sequence.generation.deltas_from(0) == completion.deltas
        deltas.append(completion.deltas)
    assert deltas[0] == deltas[1] == deltas[2]


def test_a_sequence_that_cannot_be_decoded_fails_alone(byte_fallback: Any) -> None:
    tokenizer = byte_fallback
    output, undecodable, decodable = (
        OutputProcessor(tokenizer),
        _sequence(tokenizer),
        _sequence(tokenizer),
    )
    output.put([SequenceUpdate(undecodable, 0, [-1])])
    output.close()
    error = undecodable.generation._outcome
    assert isinstance(error, EngineError)
    assert undecodable.generation.cancelled
    output = OutputProcessor(tokenizer)
    decodable.output_token_ids = [300]
    output.put([SequenceUpdate(decodable, 0, [300], FinishReason.STOP)])
    output.close()
    assert decodable.generation.result(0).output_tokens == 1


def test_texts_of_different_lengths_are_decoded_together(byte_fallback: Any) -> None:
    """One ends at its stop string, before the others and its own last tokens."""
    tokenizer = byte_fallback
    texts = {"gravity pulls bonito kanduren": (), "pull": (), "bonito kanduren and more": ("ka",)}
    updates = []
    for text, stop in texts.items():
        sequence = _sequence(tokenizer, stop)
        sequence.output_token_ids = tokenizer.encode(text, add_special_tokens=False)
        updates.append(SequenceUpdate(sequence, 0, sequence.output_token_ids, FinishReason.LENGTH))
    output = OutputProcessor(tokenizer)
    output.put(updates)
    output.close()
    first, short, stopped = (update.sequence.generation.result(0) for update in updates)
    for update, completion in zip(updates, (first, short), strict=False):
        assert completion.text == tokenizer.decode(update.new_token_ids, skip_special_tokens=True)
    assert len(first.deltas) > len(short.deltas)
    assert stopped.text.strip() == "bonito"
    assert stopped.finish_reason is FinishReason.STOP_STRING
    for update, completion in zip(updates, (first, short, stopped), strict=True):
        assert update.sequence.generation.deltas_from(0) == completion.deltas


def test_a_text_that_is_cut_and_generated_again_streams_the_same_deltas(
    byte_fallback: Any, byte_level: Any
) -> None:
    """A cancelled stage with stop strings runs again, whatever was held back."""
    rng = random.Random(6)
    stops = ("b☕", "\ufffd", "é", "or n", "\ufffd\ufffd", "科学 a")
    for tokenizer in byte_fallback, byte_level:
        tokens = tokenizer.encode("four ☕b☕ or né\u20ac 科学 and", add_special_tokens=False)
        for _ in range(40):
            stop = tuple(rng.sample(stops, 2))
            # Bytes that begin a character and do not end it.
            token_ids = [each for each in tokens if rng.random() < 0.9]
            whole, streamed = _run(tokenizer, stop, token_ids, FinishReason.LENGTH, rng)
            assert streamed == whole.deltas
            for num_known in range(len(token_ids) + 1):
                known = token_ids[:num_known]
                cut, begun = _run(tokenizer, stop, known, FinishReason.CANCELLED, rng)
                assert begun == streamed[: len(begun)]
                if cut.finish_reason is FinishReason.STOP_STRING:
                    assert (cut.text, begun) == (whole.text, streamed), (stop, known)


def _run(
    tokenizer: Any,
    stop: tuple[str, ...],
    token_ids: list[int],
    outcome: FinishReason,
    rng: random.Random,
) -> tuple[Completion, list[str]]:
    """Generate tokens, in updates of any size; return the completion and what was streamed."""
    output, sequence = OutputProcessor(tokenizer), _sequence(tokenizer, stop)
    for num_known in range(len(token_ids)):
        start, end = sequence.num_emitted_tokens, whole_delta_tokens(num_known)
        if end > start and rng.random() < 0.5:
            output.put([SequenceUpdate(sequence, start, token_ids[start:end])])
            sequence.num_emitted_tokens = end
    sequence.output_token_ids = token_ids
    start = sequence.num_emitted_tokens
    output.put([SequenceUpdate(sequence, start, token_ids[start:], outcome)])
    output.close()
    return sequence.generation.result(0), sequence.generation.deltas_from(0)


def _sequence(tokenizer: Any, stop: tuple[str, ...] = ()) -> Sequence:
    generation = Generation(Request(Role.ACTOR, "", Sampling(stop=stop)))
    return Sequence(generation, [1], 99, 0, make_detokenizer(tokenizer, stop))
