"""The log's keys and its origin: given, made, and rotated."""

from __future__ import annotations

import pytest

from jobs.database import Database
from jobs.errors import LogKeyError
from jobs.protocol.history import history
from jobs.statements import log
from jobs.tlog.note import Signer, Verifier
from jobs.use_cases import log_signing, proving, verifying
from jobs.use_cases.log_signing import Signing
from tests.integration.sealed import end, seal
from tests.integration.tampering import is_as_recorded

NAME = "example.com/log"


def test_a_key_and_an_origin_can_be_given(database: Database) -> None:
    key = Signer.generate(NAME)
    end(database)
    seal(database, Signing.of(key.to_text(), None))
    assert proving.list_keys(database) == [key.verifier]
    report = verifying.verify(database, history, trusted=[key.verifier])
    assert (report.origin, report.jobs) == (NAME, 1)
    with database.read() as connection:
        assert [row.private for row in log.keys(connection)] == [None], (
            "it stays where it was given"
        )


def test_an_origin_alone_names_the_log(database: Database) -> None:
    end(database)
    seal(database, Signing(origin=NAME))
    assert [key.name for key in proving.list_keys(database)] == [NAME]
    end(database)
    with pytest.raises(
        LogKeyError, match=r"HELIXQ_LOG_ORIGIN is other, and the log is example.com/log"
    ):
        seal(database, Signing(origin="other"))
    assert seal(database) == 1


def test_keys_rotate(database: Database) -> None:
    kept, other = Signer.generate(NAME), Signer.generate(NAME)
    with pytest.raises(LogKeyError, match="no key yet"):
        log_signing.rotate_key(database)
    end(database)
    seal(database, Signing(origin=NAME))
    second = log_signing.rotate_key(database)
    for signing in (Signing(), Signing(kept), Signing(other)):
        end(database)
        seal(database, signing)
    with database.read() as connection:
        keys = log.keys(connection)
    assert [Verifier.parse(row.verifier) for row in keys][1:] == [
        second,
        kept.verifier,
        other.verifier,
    ]
    assert {row.private for row in keys} == {None}, "old keys are not kept"
    assert is_as_recorded(database).checkpoints == 4
    end(database)
    with pytest.raises(LogKeyError, match="is an old key"):
        seal(database, Signing(kept))
    with pytest.raises(LogKeyError, match="give it to this process too"):
        seal(database)
    with pytest.raises(LogKeyError, match="is a key of elsewhere"):
        seal(database, Signing(Signer.generate("elsewhere")))
    with pytest.raises(LogKeyError, match="HELIXQ_LOG_KEY"):
        log_signing.rotate_key(database)
    assert seal(database, Signing(other)) == 1
