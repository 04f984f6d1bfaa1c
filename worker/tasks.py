"""The Celery tasks of actor, critic and regenerator."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs import logs
from jobs.messages import task_name
from jobs.pipeline import Role
from worker.stage_runner import StageRunner


def register(app: Celery, runner: StageRunner) -> None:
    """Register the tasks of the three roles with a Celery app."""

    def run(job_id: str, stage_index: int) -> None:
        # They last until the thread takes another message: Celery logs about this one after its task, too.
        logs.begin(job_id=job_id, stage=stage_index)
        runner.run(job_id, stage_index)

    class Stage(Task):  # type: ignore[type-arg]  # generic for type checkers alone
        """A stage's task. If Redis refuses the next stage's message, the sweep publishes it later."""

        def apply_async(self, *arguments: Any, **options: Any) -> Any:
            try:
                # Celery would retry three times, and then fail this stage's task.
                return super().apply_async(*arguments, **{**options, "retry": False})
            except (OperationalError, RedisError) as error:
                if not options.get("retry", True):
                    raise  # Called by a sweep, which handles the error itself.
                job_id, stage_index = arguments[0]
                runner.publish_later(job_id, stage_index, error)

    for role in Role:
        app.task(name=task_name(role), base=Stage)(run)
