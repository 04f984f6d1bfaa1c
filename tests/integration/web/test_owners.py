"""Jobs of other owners are not found."""

from __future__ import annotations

import pytest

from tests.integration.web.client import Client, ask
from web.services import Services


def test_a_job_of_another_owner_is_not_found(web: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = ask(web)["id"]
    monkeypatch.setattr(Services, "owner", "other")
    for path in (
        f"/v1/responses/{job_id}",
        f"/v1/responses/{job_id}?stream=true",
        f"/api/jobs/{job_id}",
        f"/jobs/{job_id}",
    ):
        assert web.get(path).status_code == 404, path
    assert web.post(f"/v1/responses/{job_id}/cancel").status_code == 404
    assert web.get("/v1/responses").json["data"] == []
    assert web.get("/v1/responses", query_string={"after": job_id}).status_code == 404
    monkeypatch.undo()
    assert web.get(f"/v1/responses/{job_id}").json["status"] == "queued"
