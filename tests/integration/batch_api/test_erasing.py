"""Texts that are erased from the output files of batches."""

from __future__ import annotations

import json

import pytest

from jobs.errors import LineNotWrittenError
from jobs.models import ANONYMOUS, FileChunk
from jobs.protocol.history import history
from jobs.use_cases import batch_answers, cancellation, erasing
from tests.integration.batch_api.service import CHAT, RESPONSES, BatchService, line, lines
from tests.integration.sealed import seal
from tests.integration.web.client import finish


@pytest.mark.parametrize("endpoint", [RESPONSES, CHAT])
def test_an_erased_text_is_gone_from_the_output_file(service: BatchService, endpoint: str) -> None:
    """Its line says so, and all others stay where they are."""
    batch_id = service.create("".join(line(f"{n}", endpoint) for n in range(3)), endpoint)
    service.validate(batch_id)
    while not (queued := service.queued(batch_id)):
        service.runner.run()
    job_id = queued[1]
    finish(service.database, job_id)
    seal(service.database)

    def erase(*texts: str) -> list[str]:
        return erasing.erase(service.database, None, job_id, history, texts, erased_by="ann")

    with pytest.raises(LineNotWrittenError):
        erase("/attempts/0/output")
    done = service.complete(batch_id)
    before = service.lines(done.output_file_id)
    whole = service.client.files.content(done.output_file_id or "").read()
    assert erase("/question")[0] == "/question"
    assert service.lines(done.output_file_id) == before, "answers do not have it"
    erase("/attempts/0/output")
    after = service.lines(done.output_file_id)
    assert after["1"]["response"]["status_code"] == 410
    assert after["1"]["response"]["body"]["error"]["code"] == "erased"
    assert after["1"]["response"]["request_id"] == job_id
    assert (after["0"], after["2"]) == (before["0"], before["2"])
    assert len(service.client.files.content(done.output_file_id or "").read()) == len(whole)
    erase("/batch/custom_id")
    assert set(service.lines(done.output_file_id)) == {"0", "", "2"}


def test_the_custom_id_of_a_cancelled_line_is_erased(service: BatchService) -> None:
    """Its line has no answer, and names no job."""
    batch_id = service.create(line('a"1') + line("b"))
    service.validate(batch_id)
    while not (queued := service.queued(batch_id)):
        service.runner.run()
    cancellation.cancel(service.database, ANONYMOUS, queued[0])
    done = service.complete(batch_id)
    seal(service.database)
    before = service.lines(done.error_file_id)
    assert before.keys() == {'a"1'}
    erasing.erase(service.database, None, queued[0], history, ["/metadata"], erased_by="ann")
    assert service.lines(done.error_file_id) == before
    erasing.erase(service.database, None, queued[0], history, None, erased_by="ann")
    assert service.lines(done.error_file_id) == {"": {**before['a"1'], "custom_id": ""}}
    assert service.lines(done.output_file_id).keys() == {"b"}


def test_a_line_that_is_in_two_chunks_is_erased(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_answers, "CHUNK", 700)
    monkeypatch.setattr("jobs.use_cases.erasing.READ_CHUNKS", 1)
    batch_id = service.create(lines(4))
    done = service.complete(batch_id)
    seal(service.database)
    before = service.lines(done.output_file_id)
    for name, line_ in before.items():
        job_id = line_["response"]["request_id"]
        erasing.erase(service.database, None, job_id, history, None, erased_by="ann")
        whole = service.client.files.content(done.output_file_id or "").read()
        assert f'"{name}"'.encode() not in whole
    assert b"A text." not in whole
    assert [json.loads(each)["custom_id"] for each in whole.splitlines()] == [""] * 4
    assert service.count(FileChunk) > 4
