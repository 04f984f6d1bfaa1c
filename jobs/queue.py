"""The Celery app, and the publisher of jobs as chains of messages.

Messages contain only ids, as JSON, and results are ignored: inputs and outputs are in the database.
Nothing depends on the broker: a sweep publishes lost messages again, and a duplicate finds nothing to
claim.

Questions wait in one queue for all workers. Jobs that have begun wait in the queue of their model, which
only workers with that model consume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]  # since 5.7
from redis.exceptions import RedisError

from jobs import pipeline
from jobs.broker import Connection
from jobs.errors import QueueUnavailableError
from jobs.messages import task_name
from jobs.pipeline import MAX_PRIORITY, NextStage
from jobs.redis_url import broker_options

#: First stages that no worker has claimed yet.
QUEUE = "helixq"
#: Seconds after its last message after which Redis drops the queue of a model.
MODEL_QUEUE_EXPIRY = 3600.0
#: The prefix of all of Kombu's keys in Redis.
KEY_PREFIX = "helixq:"
#: Seconds to wait for Redis.
TIMEOUT = 3
#: Seconds after which a consumer drops a connection that does not answer, as when its server has lost power. Kombu's
#: own are 25.
HEALTH_CHECK_INTERVAL = 5


def model_queue(model: str) -> Queue:
    """Return the queue of stages that only workers with a model may run.

    Args:
        model: as in `jobs.models.Worker.model`.
    """
    name = f"{QUEUE}.{model}"
    return Queue(name, routing_key=name, expires=MODEL_QUEUE_EXPIRY)


def make_app(redis_url: str, model: str | None = None) -> Celery:
    """Return a Celery app.

    Args:
        redis_url: of the broker.
        model: of the worker that will consume with the app; None if it runs no stages.
    """
    queues = [Queue(QUEUE)]
    if model is not None:
        queues.append(model_queue(model))

    def route(_name: str, args: tuple[str, int], *_: object, **__: object) -> dict[str, str] | None:
        """Route the next message of a chain to this worker's model: it ran the stage before."""
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
        # A worker takes no more messages than it has slots.
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Retry also when Redis replies with an error such as READONLY, NOREPLICAS, MISCONF or TRYAGAIN.
        broker_channel_error_retry=True,
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            # Kombu would keep a copy of each message in Redis until it is acknowledged, and deliver it
            # again after an hour. The sweep is faster, and so a stage can end while Redis is away.
            "ack_emulation": False,
            "priority_steps": list(range(MAX_PRIORITY + 1)),
            "socket_connect_timeout": TIMEOUT,
            "socket_timeout": TIMEOUT,
            "health_check_interval": HEALTH_CHECK_INTERVAL,
            # For Sentinel.
            "redis_url": redis_url,
            # Publishing is tried twice, since a request waits for it; then a sweep does it. A
            # consumer reconnects as set above.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        timezone="UTC",
    )
    return app


class Publisher:
    """Publishes messages for the stages of jobs. Threads may share it."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, stages: Sequence[NextStage]) -> None:
        """Publish a chain of messages for each job, one message for each of its stages that are left.

        All first messages go to Redis at once.

        Args:
            stages: the next stages of the jobs, in the order in which to deliver them.

        Raises:
            QueueUnavailableError: Redis did not take all of them.
        """
        try:
            pool: Any = self._app.producer_pool  # celery-types does not know batches.
            with pool.acquire(block=True) as producer, producer.batch():
                for each in stages:
                    self._send(each, producer)
        except (OperationalError, BatchPublishError, RedisError) as error:
            raise QueueUnavailableError(str(error.__cause__ or error)) from error

    def _send(self, following: NextStage, producer: Any) -> None:
        # What `celery.chain` sends; but that takes twice the time, and would use a producer of its own.
        # celery-types does not know that a queue may be more than a name.
        queue: Any = QUEUE if following.model is None else model_queue(following.model)
        first, *later = pipeline.stages(following.rounds)[following.stage_index :]
        self._app.send_task(
            task_name(first.role),
            args=(following.job_id, first.index),
            # In Redis, 0 is delivered first. Later stages go before new questions, so that jobs finish
            # before others begin.
            priority=MAX_PRIORITY - following.priority if first.index == 0 else 0,
            # Of the first message; the worker that runs its stage routes the next one.
            queue=queue,
            # The last one comes next.
            chain=[
                self._app.signature(
                    task_name(stage.role),
                    args=(following.job_id, stage.index),
                    immutable=True,
                    options={"priority": 0},
                )
                for stage in reversed(later)
            ],
            producer=producer,
            retry=False,
        )

    def queue_length(self) -> int:
        """Count the messages of questions that no worker has taken.

        Raises:
            QueueUnavailableError: Redis does not respond.
        """
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                # Declaring a queue returns its length. In Redis it creates nothing.
                channel: Any = connection.default_channel  # celery-types has no methods for it.
                return int(channel.queue_declare(QUEUE).message_count)
        except (OperationalError, RedisError) as error:
            raise QueueUnavailableError(str(error)) from error
