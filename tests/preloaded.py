"""What programs and tests need is imported once, before it is forked: see `tests.fork_server`."""

from __future__ import annotations

# What Celery imports when it is used first: with it, a worker would take half as long again to start.
import billiard.pool
import celery.app.amqp
import celery.app.control
import celery.app.events
import celery.app.log
import celery.app.routes
import celery.apps.worker
import celery.backends.base
import celery.concurrency.thread
import celery.events
import celery.fixups.django
import celery.loaders.app
import celery.worker.autoscale
import celery.worker.components
import celery.worker.consumer
import celery.worker.consumer.delayed_delivery
import celery.worker.strategy
import peft.utils.transformers_weight_conversion

import cli.database
import cli.keys
import cli.main
import cli.parts
import cli.questions
import cli.running
import cli.up
import web.serve
import worker.local_engine
import worker.main
