"""Creates an engine in this process: loads base and adapters from files onto this machine's device."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import NoReturn

import torch
import transformers
from torch import Tensor

from jobs import logs
from jobs.pipeline import Role, Sampling
from jobs.settings import Settings
from jobs.use_cases.workers import Runtime
from worker.checkpoints import loading
from worker.checkpoints.digests import Digests
from worker.checkpoints.discovery import Checkpoints, find_checkpoints
from worker.checkpoints.errors import CheckpointError, first_line
from worker.engine import probe
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.precompile import KernelCompilation, meta_runner
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.cuda import requirements
from worker.engine.cuda.requirements import DeviceError
from worker.engine.interface import Engine, EngineError, Request
from worker.engine.reference import ReferenceEngine
from worker.engine.threads import in_fresh_thread
from worker.phases import phase

log = logging.getLogger(__name__)

#: The prompt that each role generates from before the worker is ready.
WARM_UP_PROMPT = "Hello"


def make_engine(
    settings: Settings, digests: Digests, register: Callable[[Runtime], None]
) -> tuple[Engine, Runtime]:
    """Create an engine, verified and warmed up. The caller closes it.

    Args:
        settings: of the worker.
        digests: of the checkpoints' files, which are being computed.
        register: registers the worker; called as soon as the engine's runtime is known.

    Raises:
        CheckpointError: the model or an adapter cannot be used.
    """
    _silence_libraries()
    checkpoints = find_checkpoints(settings, digests)
    reasons = loading.batching_unsupported_reasons(checkpoints)
    if reasons and settings.engine == "batching":
        raise CheckpointError(
            f"HELIXQ_ENGINE=batching cannot be used, because of {'; '.join(reasons)}; "
            "set HELIXQ_ENGINE=auto"
        )
    if settings.engine == "reference":
        reasons = ["HELIXQ_ENGINE=reference"]
    slots = None if settings.slots == "auto" else settings.slots
    with phase("hashing and loading"):
        engine, runtime = load_and_register(checkpoints, digests, slots, reasons, register)
    with phase("warming up"):
        _warm_up(engine)
    return engine, runtime


def load_and_register(
    checkpoints: Checkpoints,
    digests: Digests,
    slots: int | None,
    reasons: list[str],
    register: Callable[[Runtime], None],
) -> tuple[Engine, Runtime]:
    """Load the engine while the files are hashed; register the worker once they are.

    An error of loading ends hashing, and is raised at once.

    Args:
        checkpoints: the base and its adapters.
        digests: of their files.
        slots: the maximum number of sequences in a batch; None for as many as suit the device.
        reasons: why the batching engine cannot serve them; empty if it can.
        register: registers the worker.

    Returns:
        the engine, and the runtime that was registered, now with the engine's configuration.

    Raises:
        CheckpointError: the model cannot be used, or its files changed while they were loaded.
    """

    def stop_hashing_on_error(loading: Future[BatchingEngine | ReferenceEngine]) -> None:
        if loading.exception() is not None:
            digests.stop()

    with in_fresh_thread(partial(load_engine, checkpoints, slots, reasons)) as loading:
        loading.add_done_callback(stop_hashing_on_error)
        try:
            runtime = Runtime(
                description=checkpoints.describe(
                    ReferenceEngine.name if reasons else BatchingEngine.name
                ),
                context=checkpoints.context,
                tokenizer=checkpoints.tokenizer.backend_tokenizer.to_str(),
            )
            register(runtime)
            engine = loading.result()
            checkpoints.check_unchanged()
        except Exception:
            loading.result().close()
            raise
        return engine, replace(
            runtime,
            description={**runtime.description, "engine_config": asdict(engine.config)},
        )


def load_engine(
    checkpoints: Checkpoints, slots: int | None, reasons: list[str]
) -> BatchingEngine | ReferenceEngine:
    """Load the model into the batching engine, or into the reference engine if there are reasons to.

    Args:
        checkpoints: the base and its adapters.
        slots: the maximum number of sequences in a batch; None for as many as suit the device.
        reasons: why the batching engine cannot serve them; empty if it can.

    Raises:
        CheckpointError: the weights cannot be used, or leave no memory for the context.
    """
    if not reasons and checkpoints.device.type == "cuda":
        with _explain_engine_errors(checkpoints):  # at once, and not after loading
            requirements.check(checkpoints.device)
    compilation = None if reasons else _start_compiling(checkpoints, slots)
    with compilation or nullcontext():
        loaded = loading.load(checkpoints)
    if reasons:
        log.warning(
            "the reference engine runs one request at a time, because of %s", "; ".join(reasons)
        )
        reference = ReferenceEngine(
            loaded.models, checkpoints.tokenizer, max_model_len=checkpoints.context
        )
        return _verified(reference, checkpoints, loaded.probe_logits, probe.REFERENCE_TOLERANCE)
    for role, changed in loaded.changed_tensors.items():
        if changed:
            raise CheckpointError(
                f"The {role} adapter {checkpoints.adapters[Role(role)].name} cannot be served: loading it "
                f"changes {changed[0]} of the base, which its config does not mention; set "
                "HELIXQ_ADAPTERS to a plain LoRA"
            )
    with _explain_engine_errors(checkpoints):
        engine = BatchingEngine.from_models(
            loaded.models,
            checkpoints.tokenizer,
            RunnerOptions(
                max_model_len=checkpoints.context,
                max_num_seqs=slots,
                # Not the digests, which may not be computed yet.
                adapter_keys=[
                    str(checkpoints.adapters[Role(name)].path.resolve()) for name in loaded.models
                ],
            ),
            on_engine_dead=_exit,
        )
    log.info(
        "up to %d sequences at once; the KV cache has room for %d tokens; a sequence has up to %d",
        engine.max_num_seqs,
        engine.kv_cache_tokens,
        checkpoints.context,
    )
    return _verified(engine, checkpoints, loaded.probe_logits, probe.TOLERANCE[checkpoints.dtype])


@contextmanager
def _explain_engine_errors(checkpoints: Checkpoints) -> Iterator[None]:
    """Raise errors of the device, and of making the batching engine, as a `CheckpointError` of one sentence."""
    try:
        yield
    except DeviceError as error:
        raise CheckpointError(
            f"HELIXQ_DEVICE={checkpoints.device} cannot be used: {error}"
        ) from error
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"HELIXQ_DEVICE={checkpoints.device} cannot be used: the weights leave too little memory "
            f"({first_line(error)}); free the device, use a larger one, or set HELIXQ_QUANTIZATION=4bit"
        ) from error
    except EngineError as error:
        raise CheckpointError(
            f"The adapters cannot be served by the batching engine: {error}, which its config "
            "does not mention; set HELIXQ_ADAPTERS to plain LoRAs"
        ) from error


def _start_compiling(checkpoints: Checkpoints, slots: int | None) -> KernelCompilation | None:
    """Start to compile the kernels of the batching engine on CUDA, while the weights are loaded.

    A small model stands for them, which not every adapter fits: its layers may be other ones, or it may be for another
    base, which loading reports.
    """
    if checkpoints.device.type != "cuda" or checkpoints.quantization != "none":
        return None
    try:
        runner = meta_runner(
            checkpoints.config,
            {role.value: adapter.path for role, adapter in checkpoints.adapters.items()},
            checkpoints.dtype,
            max_model_len=checkpoints.context,
            max_num_seqs=slots,
        )
    except Exception as error:  # of PEFT and transformers; whatever it is, the start goes on
        log.info("kernels are compiled at their first use: %s", first_line(error))
        log.debug("the error behind the message", exc_info=True)
        return None
    return KernelCompilation(runner, checkpoints.device) if runner else None


def _verified(
    engine: BatchingEngine | ReferenceEngine,
    checkpoints: Checkpoints,
    scores: dict[str, Tensor],
    tolerance: float,
) -> BatchingEngine | ReferenceEngine:
    """Return the engine if its logits for each role are those of PEFT with that role's adapter alone.

    Args:
        engine: to verify. It is closed if it fails.
        checkpoints: from which it was loaded.
        scores: PEFT's logits for the probe, by role.
        tolerance: the maximum relative difference.

    Raises:
        CheckpointError: the logits of a role differ.
    """
    try:
        logits = engine.compute_logits(probe.probe_token_ids(checkpoints.config))
        probe.check(logits, scores, checkpoints.dtype, tolerance)
    except probe.ProbeError as error:
        engine.close()
        adapter = checkpoints.adapters[Role(error.adapter_name)].name
        raise CheckpointError(
            f"The {error.adapter_name} adapter {adapter} cannot be served by the {engine.name} engine: {error}"
        ) from error
    return engine


def _exit() -> NoReturn:
    """Exit at once, as if killed: the leases expire, and another worker's sweep takes the stages back.

    Releasing them instead would not count as lost attempts, and a stage that breaks the engine would end
    one worker after another for ever.
    """
    log.critical("exiting: the engine is dead; the stages will run again")
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


def _warm_up(engine: Engine) -> None:
    """Generate with each role, so that the first job does not wait for one-time initialization."""
    for role in Role:
        request = Request(role, WARM_UP_PROMPT, Sampling(temperature=0, max_output_tokens=2))
        engine.submit(request).result()


def _silence_libraries() -> None:
    """Suppress the libraries' warnings and progress bars that do not help an operator; log the rest in our format."""
    logs.take_over("transformers", "huggingface_hub")
    # transformers warns that PEFT uses a deprecated name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
