"""Makes the engine of this process: base and adapters from files, on this machine's device."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NoReturn

import transformers
from torch import Tensor

from jobs.pipeline import Role, Sampling
from jobs.settings import Settings
from jobs.use_cases.workers import Runtime
from worker.checkpoints import loading
from worker.checkpoints.digests import Digests
from worker.checkpoints.discovery import Checkpoints, find_checkpoints
from worker.checkpoints.errors import CheckpointError
from worker.engine import probe
from worker.engine.batching.engine import BatchingEngine
from worker.engine.cuda.requirements import DeviceError
from worker.engine.interface import Engine, EngineError, Request
from worker.engine.reference import ReferenceEngine
from worker.engine.threads import in_fresh_thread
from worker.phases import phase

log = logging.getLogger(__name__)

#: What each role is asked before the worker takes jobs.
WARM_UP_PROMPT = "Hello"


def make(
    settings: Settings, digests: Digests, register: Callable[[Runtime], None]
) -> tuple[Engine, Runtime]:
    """Load base and adapters into an engine that is warm and proved; the caller closes it.

    Args:
        settings: the worker's.
        digests: what is being hashed already.
        register: makes known what the worker will serve, as soon as that is known.

    Raises:
        CheckpointError: the model or an adapter cannot be used.
    """
    _quieten()
    found = find_checkpoints(settings, digests)
    reasons = loading.unbatchable(found)
    slots = None if settings.slots == "auto" else settings.slots
    with phase("hashing and loading"):
        engine, runtime = load(found, digests, slots, reasons, register)
    with phase("warming up"):
        _warm_up(engine)
    return engine, runtime


def load(
    found: Checkpoints,
    digests: Digests,
    slots: int | None,
    reasons: list[str],
    register: Callable[[Runtime], None],
) -> tuple[Engine, Runtime]:
    """Load the model while it is still being hashed; register the worker as soon as that is done.

    What goes wrong in loading is said first, and at once.

    Args:
        found: the base and its adapters.
        digests: what hashes them.
        slots: requests to decode together; as many as suit the device if None.
        reasons: why model and adapters cannot be batched.
        register: makes known what the worker will serve.

    Raises:
        CheckpointError: the model cannot be used, or changed meanwhile.
    """

    def hurry(loading: Future[Engine]) -> None:
        if loading.exception() is not None:
            digests.stop()

    with in_fresh_thread(partial(start_engine, found, slots, reasons)) as loading:
        loading.add_done_callback(hurry)
        try:
            runtime = Runtime(
                description=found.describe(
                    ReferenceEngine.name if reasons else BatchingEngine.name
                ),
                context=found.context,
                tokenizer=found.tokenizer.backend_tokenizer.to_str(),
            )
            register(runtime)
            loading.result()
            found.check_unchanged()
        except Exception:
            loading.result().close()
            raise
        return loading.result(), runtime


def start_engine(found: Checkpoints, slots: int | None, reasons: list[str]) -> Engine:
    """Load the model into the engine that batches, or where that cannot be, into the reference.

    Args:
        found: the base and its adapters.
        slots: requests to decode together; as many as suit the device if None.
        reasons: why model and adapters cannot be batched.

    Raises:
        CheckpointError: the weights cannot be used, or leave no memory for the context.
    """
    loaded = loading.load(found)
    if reasons:
        log.warning(
            "the reference engine serves one request at a time, because of %s", "; ".join(reasons)
        )
        reference = ReferenceEngine(loaded.models, found.tokenizer, max_model_len=found.context)
        return _proved(reference, found, loaded.scores, probe.REFERENCE_TOLERANCE)
    for role, changed in loaded.changed.items():
        if changed:
            raise CheckpointError(
                f"The {role} adapter {found.adapters[Role(role)].name} cannot be served: it changes "
                f"{changed[0]} of the base as it loads, which nothing in its config tells; give "
                "a plain LoRA in HELIXQ_ADAPTERS"
            )
    try:
        engine = BatchingEngine(
            loaded.models,
            found.tokenizer,
            max_model_len=found.context,
            max_num_seqs=slots,
            # Not the digests: they may still be being made.
            adapter_keys=[str(found.adapters[Role(name)].path.resolve()) for name in loaded.models],
            on_device_lost=_die,
        )
    except DeviceError as error:
        raise CheckpointError(f"HELIXQ_DEVICE={found.device} cannot be used: {error}") from error
    except EngineError as error:
        raise CheckpointError(
            f"The adapters cannot be served by the batching engine: {error}, which nothing in its config "
            "tells; give plain LoRAs in HELIXQ_ADAPTERS"
        ) from error
    log.info(
        "up to %d stages at a time; keys and values have room for %d tokens, of %d at most each",
        engine.max_num_seqs,
        engine.kv_cache_tokens,
        found.context,
    )
    return _proved(engine, found, loaded.scores, probe.TOLERANCE[found.dtype])


def _proved(
    engine: BatchingEngine | ReferenceEngine,
    found: Checkpoints,
    scores: dict[str, Tensor],
    tolerance: float,
) -> Engine:
    """Make sure that an engine computes each role as PEFT did when its adapter alone was there."""
    try:
        mine = engine.compute_logits(probe.probe_token_ids(found.config))
        probe.check(mine, scores, found.dtype, tolerance)
    except probe.ProbeError as error:
        engine.close()
        adapter = found.adapters[Role(error.adapter_name)].name
        raise CheckpointError(
            f"The {error.adapter_name} adapter {adapter} cannot be served by the {engine.name} engine: {error}"
        ) from error
    return engine


def _die() -> NoReturn:
    """End at once, as if killed: the leases run out, and another worker's sweep takes the stages.

    To give them back would not count them as attempts, and a stage whose fault it is would bring down
    one worker after the other for ever.
    """
    log.critical("the worker ends, since its device does; its stages will run again")
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


def _warm_up(engine: Engine) -> None:
    """Generate with each role, prompt and decoding, so that the first question does not wait for it."""
    for role in Role:
        request = Request(role, WARM_UP_PROMPT, Sampling(temperature=0, max_output_tokens=2))
        engine.submit(request).result()


def _quieten() -> None:
    """Leave out of the log what its reader can do nothing about."""
    # transformers warns that peft uses a name it will drop.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
