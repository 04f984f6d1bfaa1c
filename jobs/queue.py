"""The Celery app, and how a job becomes a chain of messages.

Messages carry ids only, as JSON; results are ignored: inputs and outputs are in the
database. Nothing rests on the broker: a message that is lost is published again by the
sweep, and one that comes twice finds nothing to claim.

Questions wait in one queue for whoever comes. What a worker has begun only workers with its
model may go on with: those stages have a queue of their own for each model.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, chain
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs import pipeline
from jobs.broker import Connection
from jobs.errors import QueueUnavailableError
from jobs.pipeline import MAX_PRIORITY, Role
from jobs.redis_url import broker_options

#: First stages that no worker has claimed yet.
QUEUE = "helixq"
#: Seconds after which Redis drops the queue of a model that nobody uses any more.
MODEL_QUEUE_EXPIRY = 3600.0
#: All of Kombu's keys in Redis begin so.
KEY_PREFIX = "helixq:"
#: Seconds that publishing may hold up a request when Redis does not answer.
TIMEOUT = 3


def model_queue(model: str) -> Queue:
    """Return the queue of stages that workers with a model may take alone.

    Args:
        model: `jobs.models.Worker.model`.
    """
    name = f"{QUEUE}.{model}"
    # An exchange of its own: Kombu drops the bindings of one when its queues expire, not of a shared one.
    return Queue(name, Exchange(name), routing_key=name, expires=MODEL_QUEUE_EXPIRY)


def make_app(redis_url: str, model: str | None = None) -> Celery:
    """Make the Celery app that talks to ``redis_url``.

    Args:
        redis_url: as the setting has it.
        model: of the worker whose app it is; None if it runs no stages.
    """
    queues = [Queue(QUEUE)]
    if model is not None:
        queues.append(model_queue(model))

    def route(_name: str, args: tuple[str, int], *_: object, **__: object) -> dict[str, str] | None:
        """Send the next link of a chain to this worker's model: what came before it was its work."""
        return {"queue": queues[-1].name} if args[1] > 0 else None

    app = Celery("helixq", set_as_current=False)
    app.amqp.Connection = Connection
    app.conf.update(
        **broker_options(redis_url),
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_queues=queues,
        task_routes=(route,),
        task_default_queue=QUEUE,
        # A worker holds as many messages as it has slots, and no more.
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Errors that Redis answers with, and that pass: READONLY, NOREPLICAS, MISCONF, TRYAGAIN…
        broker_channel_error_retry=True,
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            # Kombu would keep a copy of each message in Redis until it is acknowledged, and bring
            # it back after an hour; what a worker that dies had taken, the sweep publishes sooner.
            # A message is then the worker's own: its end needs no Redis that answers.
            "ack_emulation": False,
            "priority_steps": list(range(MAX_PRIORITY + 1)),
            "socket_connect_timeout": TIMEOUT,
            "socket_timeout": TIMEOUT,
            # Publishing gives up after a second try at once: the sweep has more patience
            # than a request. A worker's consumer reconnects by the settings above.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        timezone="UTC",
    )
    return app


def task_name(role: Role) -> str:
    """Return the name of the task that runs a role's stages."""
    return f"helixq.{role}"


class Doorbell:
    """Tells workers through Redis that a job has something to do."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(
        self,
        job_id: str,
        *,
        stage_index: int,
        rounds: int,
        priority: int,
        model: str | None = None,
    ) -> None:
        """Publish the chain of a job's stages from ``stage_index`` on.

        Args:
            job_id, stage_index, rounds: which.
            priority: the job's; later stages go first whatever it is.
            model: the one that the job's run is settled on.

        Raises:
            QueueUnavailableError: Redis did not take it; the sweep will publish it later.
        """
        queue = QUEUE if model is None else model_queue(model)
        links = [
            self._app.signature(
                task_name(stage.role),
                args=(job_id, stage.index),
                immutable=True,
                # In Redis 0 goes first. Later stages go before new questions, so that jobs
                # finish rather than pile up half done.
                options={"priority": MAX_PRIORITY - priority if stage.index == 0 else 0},
            )
            for stage in pipeline.stages(rounds)[stage_index:]
        ]
        try:
            # What is said here holds for the first link; the worker that runs it routes the next.
            chain(*links, app=self._app).apply_async(retry=False, queue=queue)
        except (OperationalError, RedisError) as error:
            raise QueueUnavailableError(str(error)) from error

    def waiting(self) -> int:
        """Count the messages of first stages that nobody has taken yet.

        Raises:
            QueueUnavailableError: Redis does not answer.
        """
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                # Declaring is how one asks for the length: in Redis it creates nothing.
                channel: Any = connection.default_channel  # celery-types knows no methods
                return int(channel.queue_declare(QUEUE).message_count)
        except (OperationalError, RedisError) as error:
            raise QueueUnavailableError(str(error)) from error
