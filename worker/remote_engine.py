"""Creates an engine of servers elsewhere (`HELIXQ_ENGINE=openai`). Nothing here imports torch."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer

from jobs import logs
from jobs.protocol.tokens import count_tokens
from jobs.settings import Settings
from jobs.use_cases.workers import Runtime
from worker import own_stop
from worker.checkpoints.errors import first_line
from worker.engine.interface import Engine
from worker.phases import phase
from worker.remote.description import Description
from worker.remote.engine import EventLoop, OpenAIEngine
from worker.remote.errors import RemoteError
from worker.remote.server import Server
from worker.remote.servers import Servers

#: Requests in flight for each server, and for all of them, with `HELIXQ_SLOTS=auto`. vLLM decodes 256 at once by
#: default and queues the rest.
SLOTS_PER_SERVER, MAX_AUTO_SLOTS = 64, 256
#: What a record says in the place of digests.
NO_DIGESTS = "unknown: the server has the weights, and nobody here has seen them"


def make_engine(settings: Settings, register: Callable[[Runtime], None]) -> tuple[Engine, Runtime]:
    """Create an engine whose servers respond. The caller closes it.

    Args:
        settings: of the worker.
        register: registers the worker; called as soon as the engine's runtime is known.

    Raises:
        RemoteError: the servers cannot be used as they are set.
    """
    tokenizer = _tokenizer_text(settings)
    loop = EventLoop()
    servers = loop.call(_servers(settings))
    try:
        with phase("asking the servers"):
            first = loop.call(servers.start())
        context = _context(settings, first)
        slots = _slots(settings)
        runtime = Runtime(_describe(settings, servers, slots, context), context, tokenizer)
        register(runtime)
    except BaseException:
        loop.call(servers.close())
        loop.stop()
        raise
    engine = OpenAIEngine(
        loop,
        servers,
        max_model_len=context,
        max_num_seqs=slots,
        count_tokens=_counter(tokenizer),
        api_key=settings.engine_api_key,
    )
    return engine, runtime


async def _servers(settings: Settings) -> Servers:
    """Return the servers, of which nothing is known yet. They belong to the loop that this runs on."""
    models, api_key = settings.adapters, settings.engine_api_key
    return Servers([Server(url, models, api_key) for url in settings.engine_url], _stop_worker)


def _stop_worker(reason: str) -> None:
    """Stop this worker: its records would name models that the servers no longer serve. Its stages return to the queue."""
    own_stop.stop(f"{reason}; the next start registers what they serve now")


def _slots(settings: Settings) -> int:
    """Return the maximum number of requests in flight."""
    if settings.slots != "auto":
        return settings.slots
    return min(SLOTS_PER_SERVER * len(settings.engine_url), MAX_AUTO_SLOTS)


def _describe(settings: Settings, servers: Servers, slots: int, context: int) -> dict[str, object]:
    """Return what a worker runs, for job histories."""
    descriptions = servers.descriptions
    first = next(iter(descriptions.values()))
    # The setting, or the base that the server says its adapters belong to.
    base = settings.base_model if _has_base(settings) else first.parent
    return {
        "engine": OpenAIEngine.name,
        "engine_config": {"slots": slots, "max_context": context},
        **({} if base is None else {"base": {"name": base}}),
        "adapters": {role.value: {"name": name} for role, name in settings.adapters.items()},
        "digests": NO_DIGESTS,
        "served": first.served,
        "omitted_parameters": list(first.identity[1]),
        "servers": {url: description.about for url, description in descriptions.items()},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("helixq", "httpx2", "celery")},
        },
    }


def _context(settings: Settings, description: Description) -> int:
    """Return the maximum number of tokens of prompt and output.

    Raises:
        RemoteError: nobody says it, or the setting exceeds what the server says.
    """
    if settings.max_context is None:
        if description.max_model_len is None:
            raise RemoteError(
                "The server of HELIXQ_ENGINE_URL does not say how many tokens it takes; "
                "say it in HELIXQ_MAX_CONTEXT"
            )
        return description.max_model_len
    if description.max_model_len is not None and settings.max_context > description.max_model_len:
        raise RemoteError(
            f"HELIXQ_MAX_CONTEXT={settings.max_context}, but the server takes {description.max_model_len} "
            "tokens at most"
        )
    return settings.max_context


def _has_base(settings: Settings) -> bool:
    """Whether a base was named. The default is the demo's, which the servers do not have."""
    return "base_model" in settings.model_fields_set


def _tokenizer_text(settings: Settings) -> str:
    """Return the text of the base's ``tokenizer.json``; nothing if no base was named.

    Raises:
        RemoteError: the base that was named has none.
    """
    if not _has_base(settings):
        return ""
    reference = settings.base_model
    file = Path(reference).expanduser() / "tokenizer.json"
    try:
        if not file.parent.is_dir():
            repo, _, revision = reference.partition("@")
            logs.take_over("huggingface_hub")
            file = Path(hf_hub_download(repo, "tokenizer.json", revision=revision or None))
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise RemoteError(
            f"HELIXQ_BASE_MODEL={reference}: its tokenizer.json cannot be read ({first_line(error)}); "
            "give the model that the server serves, or leave it out"
        ) from error
    except Exception as error:  # the library raises this class itself
        raise RemoteError(
            f"HELIXQ_BASE_MODEL={reference}: its tokenizer.json is damaged ({error})"
        ) from error
    # Some files cut and fill every text to one length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()


def _counter(text: str) -> Callable[[str], int] | None:
    """Return a function that counts a prompt's tokens, special tokens included; None without a tokenizer."""
    if not text:
        return None
    tokenizer = Tokenizer.from_str(text)
    return lambda prompt: count_tokens(tokenizer, [prompt])[0]
