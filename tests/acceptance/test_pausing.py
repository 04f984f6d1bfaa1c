"""A pause with real workers: what runs finishes, what waits keeps waiting whatever is killed, and nothing is lost."""

from __future__ import annotations

from tests.acceptance.conftest import Service, on_either_database
from tests.polling import poll

#: Tokens of a stage: at up to 50 a second, it runs while the queue is paused.
LENGTH = 40
QUESTIONS = 4
FINISHED = [(0, "finished"), (1, "finished"), (2, "finished")]


service = on_either_database(paced=True, HELIXQ_SLOTS="2")


def test_a_pause_holds_what_waits_whatever_is_killed(service: Service) -> None:
    running_job = service.submit("Why?", max_output_tokens=LENGTH)
    service.wait_for_text(running_job)
    with service.http() as http:
        paused = http.post("/api/system/pause", json={"note": "a new GPU"}).json()
        assert paused["changed"]
        waiting = [service.submit("Why?", max_output_tokens=1) for _ in range(QUESTIONS)]
        # The stage that runs goes on to its end. The next one does not start, and neither does a question.
        # Usually it is the first one; that may have ended before the pause.
        begun = service.attempts(running_job)
        assert len(begun) < len(FINISHED), "the pause came too late"
        while (seen := service.attempts(running_job)) != FINISHED[: len(begun)]:
            assert seen == begun
            http.get(f"/v1/responses/{running_job}", headers={"Prefer": "wait=1"})
        service.worker.wait_for("the queue is paused", count=2)
        service.worker.kill()
        service.start_worker()
        service.worker.wait_for("the queue is paused", count=2)
        late = service.submit("Why?", max_output_tokens=1)
        assert service.attempts(running_job) == FINISHED[: len(begun)]
        for job_id in (*waiting, late):
            assert service.attempts(job_id) == []
            assert http.get(f"/v1/responses/{job_id}").json()["status"] == "queued"
        # The first heartbeat of a worker says what it uses.
        system = poll(
            lambda: http.get("/api/system").json(),
            lambda read: read["workers"][0]["usage"]["resident_memory_bytes"],
        )
        assert system["queue"]["paused"] == paused["pause"], "whatever was started again"
        usage = system["workers"][0]["usage"]
        assert usage["resident_memory_bytes"] > 1 << 20
        assert usage["kv_cache_blocks"] >= 2
        assert http.post("/api/system/resume").json()["changed"]
        for job_id in (running_job, *waiting, late):
            assert service.wait(job_id)["status"] == "incomplete"
            assert service.attempts(job_id) == FINISHED
