"""A worker hashes its checkpoints while it loads them: the order of registration and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from jobs.pipeline import Role
from jobs.settings import Settings
from jobs.use_cases.workers import Runtime
from tests.integration.checkpoints import settings_for
from tests.servers import PATIENCE
from worker import local_engine
from worker.checkpoints import digests, loading
from worker.checkpoints.digests import Digests
from worker.checkpoints.discovery import Checkpoints, find_checkpoints
from worker.checkpoints.errors import CheckpointError
from worker.engine.interface import Engine


@pytest.fixture
def configured(copy: Path) -> Settings:
    return settings_for(copy)


@pytest.fixture
def hashing(configured: Settings) -> Iterator[Digests]:
    with digests.begin(configured) as folder_digests:
        yield folder_digests


def start(configured: Settings, hashing: Digests, registered: list[Runtime]) -> Engine:
    """Start as a worker does."""
    checkpoints = find_checkpoints(configured, hashing)
    reasons = loading.batching_unsupported_reasons(checkpoints)
    return local_engine.load_and_register(checkpoints, hashing, 2, reasons, registered.append)[0]


def refusal(configured: Settings, hashing: Digests) -> str:
    with pytest.raises(CheckpointError) as excinfo:
        start(configured, hashing, [])
    sentence = str(excinfo.value)
    assert "\n" not in sentence
    return sentence


def spoil(file: Path) -> str:
    """Put a NaN into a file; return the tensor's name."""
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].flatten()[0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize(("part", "file"), [("base", "model"), ("critic", "adapter_model")])
def test_invalid_weights_are_reported_before_hashing_ends(
    copy: Path, configured: Settings, part: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(self: Digests, _: Path) -> str:
        assert self._stopping.wait(PATIENCE)
        raise CancelledError

    monkeypatch.setattr(Digests, "_sha256", endless)
    weights = copy / part / f"{file}.safetensors"
    name = spoil(weights)
    with digests.begin(configured) as hashing:
        assert f"{weights}: {name} has NaN or infinite values" in refusal(configured, hashing)


def test_invalid_weights_are_reported_before_hashing_errors(
    copy: Path, configured: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: Digests, file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Digests, "_sha256", unreadable)
    with digests.begin(configured) as hashing:
        sentence = refusal(configured, hashing)
    assert sentence.startswith(f"The checkpoint {copy / 'base'} cannot be loaded ([Errno 13] ")
    assert sentence.endswith("check who may read its files")
    weights = copy / "actor" / "adapter_model.safetensors"
    name = spoil(weights)
    with digests.begin(configured) as hashing:
        assert f"{weights}: {name} has NaN" in refusal(configured, hashing)


def test_a_base_that_changes_while_it_is_loaded_is_not_served(
    copy: Path, configured: Settings, hashing: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loading.load

    def meanwhile(checkpoints: Checkpoints) -> loading.LoadedModels:
        loaded = load(checkpoints)
        weights = load_file(copy / "base" / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, copy / "base" / "model.safetensors", metadata={"format": "pt"})
        return loaded

    monkeypatch.setattr(loading, "load", meanwhile)
    sentence = refusal(configured, hashing)
    assert sentence.startswith(f"The files of {copy / 'base'} changed while they were loaded")


def test_a_base_that_changed_before_it_was_loaded_is_hashed_anew(
    copy: Path, configured: Settings, hashing: Digests
) -> None:
    """As if the worker had waited for its database meanwhile."""
    early = hashing.begin(copy / "base").result()
    weights = load_file(copy / "base" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "base" / "model.safetensors", metadata={"format": "pt"})
    registered: list[Runtime] = []
    start(configured, hashing, registered).close()
    registered_digest = registered[0].description["base"]["digest"]
    assert registered_digest == f"sha256:{digests.digest(copy / 'base')}" != f"sha256:{early}"


def test_a_worker_registers_before_its_model_is_loaded(
    configured: Settings, hashing: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The web accepts questions from then on."""
    is_registered = threading.Event()
    load = loading.load

    def once_known(checkpoints: Checkpoints) -> loading.LoadedModels:
        assert is_registered.wait(30)
        return load(checkpoints)

    monkeypatch.setattr(loading, "load", once_known)
    checkpoints = find_checkpoints(configured, hashing)
    engine, runtime = local_engine.load_and_register(
        checkpoints, hashing, 2, [], lambda _: is_registered.set()
    )
    engine.close()
    assert set(runtime.description["adapters"]) == set(Role)
    assert runtime.description["engine_config"] == {
        "slots": 2,
        "max_context": checkpoints.context,
        "paged": False,
        "cuda_graphs": False,
    }
