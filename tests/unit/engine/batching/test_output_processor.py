"""Deltas depend only on the number of tokens."""

from __future__ import annotations

from typing import Any

from jobs.pipeline import Role, Sampling
from worker.engine.batching.output_processor import (
    OutputProcessor,
    SequenceUpdate,
    whole_delta_tokens,
)
from worker.engine.batching.sequence import Sequence
from worker.engine.interface import EngineError, FinishReason, Generation, Request
from worker.engine.tokenization.detokenizer import Detokenizer


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


def _sequence(tokenizer: Any) -> Sequence:
    generation = Generation(Request(Role.ACTOR, "", Sampling()))
    return Sequence(generation, [1], 99, 0, Detokenizer(tokenizer))
