"""Redis and its sentinels over TLS: certificates are verified by all who connect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from cli.errors import explain
from jobs.progress import Progress
from jobs.queue import Publisher, make_app
from jobs.redis_url import checked
from tests.acceptance.conftest import running
from tests.certificates import make_certificate
from tests.redis_tls import TlsServers, tls_servers
from web.rate_limits import RateLimits


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServers]:
    with tls_servers(tmp_path_factory.mktemp("tls")) as started:
        yield started


def test_questions_are_answered_over_tls(
    tls: TlsServers, checkpoint: Path, socket_folder: Path, tmp_path: Path
) -> None:
    url = f"{tls.sentinel_url}?ssl_ca_certs={quote(str(tls.authority))}"
    with running(
        checkpoint,
        f"sqlite:///{tmp_path / 'jobs.sqlite3'}",
        socket_folder / "tls",
        HELIXQ_REDIS_URL=url,
    ) as service:
        job_id = service.submit("Why?", max_output_tokens=3)
        assert service.wait(job_id)["status"] in ("completed", "incomplete")
        with service.http() as http:
            assert http.get("/readyz").json()["checks"]["redis"] == "ok"


@pytest.mark.parametrize("kind", ["url", "sentinel_url"])
def test_all_who_connect_verify_the_certificate(
    tls: TlsServers, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = tls.authority, make_certificate(tmp_path / "other")
    for authority, name in ((right, "right"), (wrong, "wrong")):
        url = checked(f"{getattr(tls, kind)}?ssl_ca_certs={quote(str(authority))}")
        errors = failures(url)
        if name == "right":
            assert errors == []
        else:
            assert len(errors) == 2
            for error in errors:
                assert "CERTIFICATE_VERIFY_FAILED" in str(error)
            sentence = explain(errors[0])
            assert sentence is not None
            assert "ssl_ca_certs in HELIXQ_REDIS_URL should name" in sentence
        caplog.clear()
        with closing(RateLimits(url)) as limits:
            limits.hit("key", 10)
        assert ("not limited" in caplog.text) == (name == "wrong")


def failures(url: str) -> list[Exception]:
    """Return the errors of the live events and of the queue."""
    errors: list[Exception] = []
    progress = Progress(url)
    app = make_app(url)
    for connect in (progress.ping, Publisher(app).queue_length):
        try:
            connect()
        except Exception as error:  # noqa: BLE001 (the test looks at it)
            errors.append(error)
    progress.close()
    app.close()
    return errors


def test_a_file_that_the_url_names_and_that_is_missing(tls: TlsServers, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(Exception, match="names as ssl_ca_certs") as excinfo:
        Progress(checked(f"{tls.url}?ssl_ca_certs={quote(str(missing))}"))
    assert str(missing) in str(explain(excinfo.value))
