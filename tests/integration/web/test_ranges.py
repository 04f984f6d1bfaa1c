"""A range whose ends are in the wrong order is refused, wherever there are ranges: no job can be in it."""

from __future__ import annotations

from tests.integration.web.client import Client, ask

TIMES = (
    ("2026-01-02", "2026-01-01"),
    # The end is not part of the range. Whoever means a whole day ends it with the next one.
    ("2026-01-01", "2026-01-01"),
    ("2026-01-01T01:00:00%2B01:00", "1767225600"),
)


PATHS = (
    "/api/jobs",
    "/api/jobs/export",
    "/api/reviews/agreement",
    "/api/reviews/queue",
    "/api/stats",
    "/jobs",
    "/jobs/news",
    "/review",
    "/stats",
    "/v1/responses",
)


def test_times_in_the_wrong_order_are_refused_with_both_names(web: Client) -> None:
    for path in PATHS:
        names = (
            ("Created since", "Created before")
            if path in ("/jobs", "/stats")
            else ("since", "until")
        )
        for since, until in TIMES:
            reply = web.get(f"{path}?since={since}&until={until}")
            assert reply.status_code == 400, (path, since)
            assert "must be earlier than" in reply.text, path
            assert all(name in reply.text for name in names), path


def test_a_minimum_above_its_maximum_is_refused(web: Client) -> None:
    for path in ("/api/jobs", "/api/jobs/export", "/jobs"):
        for name in ("changed", "duration"):
            reply = web.get(f"{path}?min_{name}=0.5&max_{name}=0.25")
            assert reply.status_code == 400, (path, name)
            assert "must not be greater than" in reply.text
            assert f"max_{name}" in reply.text
            assert web.get(f"{path}?min_{name}=0.5&max_{name}=0.5").status_code == 200


def test_the_shortest_range_has_its_job(web: Client) -> None:
    job_id = ask(web)["id"]
    created = web.get(f"/api/jobs/{job_id}").json["created_at"]
    found = web.get(f"/api/jobs?since={created}&until=2100-01-01").json["data"]
    assert [job["id"] for job in found] == [job_id]
