"""API keys in the database, and the commands that make, list and revoke them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from cli.main import main
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import QuotaExceededError
from jobs.models import ANONYMOUS, ApiKey, Job, LoginSession, Scope
from jobs.use_cases import keys, stages, submission
from jobs.use_cases.keys import KeyNotFoundError, KeyState, NewKeyError
from tests.conftest import WORKER, give_schema
from tests.integration.rows import QUESTION


def turn_back(database: Database, column: sa.orm.InstrumentedAttribute[Any]) -> None:
    """Put a time of all rows into the past, since a test cannot wait for it."""
    with database.engine.begin() as connection:
        connection.execute(sa.update(column.class_).values({column: utcnow(-120)}))


def test_a_key_is_found_by_its_secret_until_it_is_revoked_or_expires(database: Database) -> None:
    assert not keys.any_valid(database)
    first, secret = keys.create(database, "laptop", [Scope.AUDIT, Scope.ASK], owner="alice")
    second, other = keys.create(database, "phone", [Scope.ASK], owner="alice", expires_in=60)
    assert re.fullmatch("hq_[0-9A-Za-z]{43}", secret)
    found = keys.find(database, secret)
    assert found is not None
    assert (found.id, found.owner, found.scopes) == (first.id, "alice", ["ask", "audit"])
    with database.engine.connect() as connection:
        rows = str(connection.execute(sa.select(ApiKey.__table__)).all())
    assert secret[7:] not in rows, "the secret is stored nowhere"
    assert found.hint == secret[:7]
    for wrong in ("", "hq_", secret[:-1], f"{secret}x", secret.swapcase(), "hq_\0" + 42 * "a"):
        assert keys.find(database, wrong) is None

    assert keys.find(database, other) is not None
    turn_back(database, ApiKey.expires_at)
    assert keys.find(database, other) is None
    with database.engine.begin() as connection:
        connection.execute(
            sa.update(ApiKey).where(ApiKey.id == first.id).values(expires_at=utcnow(60))
        )
    revoked_at = keys.revoke(database, first.id).revoked_at
    assert keys.find(database, secret) is None
    assert keys.revoke(database, first.id).revoked_at == revoked_at, "once is enough"
    with pytest.raises(KeyNotFoundError):
        keys.revoke(database, "key_0")
    states = {key.id: state for key, state in keys.list_keys(database)}
    assert states == {first.id: KeyState.REVOKED, second.id: KeyState.EXPIRED}
    assert not keys.any_valid(database)


def test_sharing_jobs_requires_an_explicit_owner(database: Database) -> None:
    keys.create(database, "alice", [Scope.ASK])
    for taken in ("alice", ANONYMOUS):
        with pytest.raises(NewKeyError, match=f"--owner {taken}"):
            keys.create(database, taken, [Scope.ASK])
        key, _ = keys.create(database, taken, [Scope.ASK], owner=taken)
        assert key.owner == taken
    for name, owner in (("", None), ("a b", None), ("a\n", "b"), ("a", "ü"), ("a", "b" * 41)):
        with pytest.raises(NewKeyError):
            keys.create(database, name, [Scope.ASK], owner=owner)


def test_last_use_is_recorded_once_a_minute(database: Database) -> None:
    used, _ = keys.create(database, "used", [Scope.ASK])
    keys.create(database, "unused", [Scope.ASK])

    def last_uses() -> list[Any]:
        keys.mark_used(database, [used.id])
        return [key.last_used_at for key, _ in keys.list_keys(database)]

    first, never = last_uses()
    assert (first is not None, never) == (True, None)
    assert last_uses() == [first, None]
    turn_back(database, ApiKey.last_used_at)
    assert last_uses()[0] >= first


def test_a_login_ends_by_logout_expiry_or_revocation(database: Database) -> None:
    key, _ = keys.create(database, "browser", [Scope.ASK])
    tokens = [keys.log_in(database, key) for _ in range(3)]
    assert all(keys.find_by_session(database, token) for token in tokens)
    keys.log_out(database, tokens[0])
    assert [keys.find_by_session(database, token) is None for token in tokens] == [
        True,
        False,
        False,
    ]
    turn_back(database, LoginSession.expires_at)
    assert keys.find_by_session(database, tokens[1]) is None
    last = keys.log_in(database, key)  # This also deletes what has expired.
    with database.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count(LoginSession.digest))) == 1
    keys.revoke(database, key.id)
    assert keys.find_by_session(database, last) is None


def test_a_quota_counts_the_queued_jobs_of_its_key(database: Database) -> None:
    limited, _ = keys.create(database, "limited", [Scope.ASK], max_queued=2)
    free, _ = keys.create(database, "free", [Scope.ASK], owner="limited")

    def submit(key: ApiKey | None, owner: str = "limited") -> Job:
        return submission.submit(database, owner, QUESTION, max_queued=10, key=key)[0]

    first = submit(limited)
    assert (first.owner, first.key_id) == ("limited", limited.id)
    submit(limited)
    with pytest.raises(QuotaExceededError, match="2 queued jobs"):
        submit(limited)
    submit(free)
    assert submit(None, ANONYMOUS).key_id is None
    assert stages.claim(database, first.id, 0, WORKER, job_timeout=60)
    submit(limited)  # since one has started


@pytest.fixture
def helixq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command on a database with tables."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    database = Database(url)
    give_schema(database.engine)
    database.close()
    monkeypatch.setenv("HELIXQ_DATABASE_URL", url)

    def run(*arguments: str, status: int = 0) -> Any:
        found = CliRunner().invoke(main, arguments)
        assert found.exit_code == status, found.output
        return found

    return run


def test_the_keys_commands(helixq: Any) -> None:
    made = helixq("keys", "create", "laptop")
    assert re.fullmatch(r"hq_\w{43}\n", made.stdout), "for KEY=$(helixq keys create …)"
    assert "owner laptop, ask, does not expire" in made.stderr
    limits = ("--max-queued", "3", "--requests-per-minute", "60", "--days", "1")
    made = helixq("keys", "create", "ci", "--scope", "audit", "--owner", "bob", *limits, "--json")
    found = json.loads(made.stdout)
    assert found["scopes"] == ["audit"]
    assert (found["max_queued"], found["requests_per_minute"]) == (3, 60)
    listed = helixq("keys", "list").stdout
    assert len(set(re.findall(r"key_\w+", listed))) == 2
    # The first one was created, and neither was used nor expires.
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\dZ +- +-", listed)
    assert found["key"] not in listed
    assert f"{found['key'][:7]}…" in listed
    assert f"{found['id']} (ci) is revoked" in helixq("keys", "revoke", found["id"]).stdout
    states = [key["state"] for key in json.loads(helixq("keys", "list", "--json").stdout)]
    assert states == ["active", "revoked"]
    assert "'laptop' owns jobs already" in helixq("keys", "create", "laptop", status=1).stderr
    assert "no API key has the id 'x'" in helixq("keys", "revoke", "x", status=1).stderr
    helixq("keys", "create", "a", "--scope", "root", status=2)
