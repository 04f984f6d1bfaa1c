"""The model: checkpoints here, or servers elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2

from cli.checks.findings import Finding, Findings, error, ok, warning
from jobs.http_clients import make_client
from jobs.settings import Settings
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.references import BASE_SETTING, find_folder, references
from worker.remote.description import Listed

TIMEOUT = 5.0


def check(settings: Settings) -> Findings:
    """Whether base and adapters are there, and their files whole: their headers are read, and no weights.

    With an engine elsewhere, whether its servers respond and list the roles' models.
    """
    if settings.engine == "openai":
        for url in settings.engine_url:
            yield _engine_server(settings, url)
        return
    for setting, reference in references(settings).items():
        name = "config.json" if setting == BASE_SETTING else "adapter_config.json"
        yield _checkpoint(setting, reference, name)


def _engine_server(settings: Settings, url: str) -> Finding:
    key = settings.engine_api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with make_client(headers=headers, timeout=TIMEOUT) as http:
            reply = http.get(f"{url}/models")
    except httpx2.RequestError as problem:
        return error(
            f"no server answers at {url} ({problem}): start it, or correct HELIXQ_ENGINE_URL"
        )
    if reply.status_code in (401, 403):
        return error(f"{url} refuses the API key: correct HELIXQ_ENGINE_API_KEY")
    try:
        data = reply.json()["data"]
    except (ValueError, KeyError, TypeError):
        data = None
    if not isinstance(data, list):
        return warning(f"{url} does not list its models: a worker tries them when it starts")
    listed = Listed.of(data, answered=True, software=None)
    if missing := [name for name in settings.adapters.values() if not listed.entry(name)]:
        return error(
            f"{url} does not list {', '.join(missing)}: correct HELIXQ_ADAPTERS, or serve them there"
        )
    return ok(f"{url} has the models of all roles")


def _checkpoint(setting: str, reference: str, config: str) -> Finding:
    try:
        folder = find_folder(reference, setting)
    except CheckpointError as problem:
        return error(f"{problem}: correct the setting")
    if folder is None:
        # Imported here since it is slow.
        from huggingface_hub import try_to_load_from_cache

        repo, _, revision = reference.partition("@")
        cached = try_to_load_from_cache(repo, config, revision=revision or None)
        if not isinstance(cached, str):
            return warning(
                f"{setting}: {reference} is not in the cache of this machine: a worker downloads it from the hub"
            )
        folder = Path(cached).parent
    try:
        json.loads((folder / config).read_bytes())
    except FileNotFoundError:
        return error(f"{setting}: {folder} has no {config}: give the folder that has it")
    except (OSError, ValueError) as problem:
        return error(f"{setting}: {folder / config} cannot be read ({problem}): copy it again")
    if config == "config.json" and not (folder / "tokenizer.json").is_file():
        return error(f"{setting}: {folder} has no tokenizer.json: copy it from the model")
    files = sorted(folder.glob("*.safetensors"))
    if not files and not [*folder.glob("*.bin")]:
        return error(f"{setting}: {folder} has no weights: copy its *.safetensors")
    for file in files:
        if damage := _damage(file):
            return error(f"{setting}: {file} {damage}: copy it again")
    return ok(f"{setting}: {reference} is whole")


def _damage(file: Path) -> str | None:
    """Return what is wrong with a file of safetensors by its header and its size; None if nothing is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            opened.keys()
    except (OSError, SafetensorError) as problem:
        return f"is damaged ({problem})"
    return None
