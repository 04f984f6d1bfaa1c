"""The settings: ``HELIXQ_*`` environment variables, read once, typed and validated."""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from jobs import redis_url
from jobs.errors import UserError
from jobs.pipeline import Role
from jobs.setting_values import (
    Witness,
    by_role,
    device_name,
    engine_urls,
    is_http,
    networks,
    number_of_slots,
    witnesses,
)
from jobs.webhooks.targets import Network

PREFIX = "HELIXQ_"
#: Settings that are secrets or may contain them. Their values are not printed, and `HELIXQ_X_FILE` may name a file that
#: has one.
SECRETS = ("database_url", "redis_url", "engine_api_key", "api_key", "log_key", "otlp_endpoint")
FILE_SUFFIX = "_FILE"
#: Of a data folder that is made: it has the histories, and in the database the key that signs the log.
DATA_DIR_MODE = 0o700
DEMO_CHECKPOINT = Path(__file__).parent.parent / "demo" / "checkpoint"

#: The maximum length of a Unix socket's path in bytes. Linux allows 107, macOS 103.
MAX_SOCKET_PATH = 100


class SettingsError(UserError):
    """A setting is wrong or unknown. The message names it."""


def _can_be_socket(path: Path) -> bool:
    """Whether all programs find a Unix socket at a path. Redis cuts off a longer one without a word."""
    # redis-py and Kombu quote special characters in URLs differently.
    plain = re.fullmatch(r"[\w/.+ -]+", str(path), re.ASCII)
    return plain is not None and len(os.fsencode(path)) <= MAX_SOCKET_PATH


def _parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Return what parses the text of a variable; other values stay as they are."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


#: What the representation of the settings leaves out: it may get into a log.
Secret = Annotated[str | None, Field(repr=False)]


class Settings(BaseModel):
    """The program's settings; a field ``x`` is the variable ``HELIXQ_X``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The base model: a folder or a hub id with optional ``@revision``.
    base_model: str = Field(default=str(DEMO_CHECKPOINT / "base"), min_length=1)
    #: The three adapters, each a folder or a hub id with optional ``@revision``.
    adapters: Annotated[dict[Role, str], _parsed(by_role)] = Field(
        default={role: str(DEMO_CHECKPOINT / role) for role in Role}
    )
    #: ``auto`` is float16 on CUDA, as the model card has it, and float32 on the CPU.
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    #: ``4bit`` quantizes the base with bitsandbytes.
    quantization: Literal["none", "4bit"] = "none"
    #: ``auto`` is the first CUDA device if there is one.
    device: Annotated[str, BeforeValidator(device_name)] = "auto"
    #: Whether special tokens in a prompt, such as ``</s>``, are tokenized as text. If not, they are control
    #: tokens, as in the model card's program.
    split_special_tokens: bool = True
    #: What of a chat's messages is asked where a chat completion does not say so: ``question`` or ``turns``.
    chat_context: Literal["question", "turns"] = "question"
    #: The maximum number of sequences in a batch; ``auto`` is 16 on a CPU, and as many as fit in memory on CUDA.
    slots: Annotated[int | Literal["auto"], BeforeValidator(number_of_slots)] = "auto"
    #: The maximum number of tokens of prompt and output together; the model's own limit if not given.
    max_context: int | None = Field(default=None, ge=16)
    #: What generates: in the worker, or ``openai`` for servers with OpenAI's API. ``auto`` is ``batching`` where
    #: it can serve the adapters, and ``reference`` otherwise.
    engine: Literal["auto", "batching", "reference", "openai"] = "auto"
    #: The servers of ``engine=openai``, each an address that ends in ``/v1``.
    engine_url: Annotated[tuple[str, ...], _parsed(engine_urls)] = ()
    #: The API key that these servers get.
    engine_api_key: Secret = None
    #: The database; a SQLite file in ``data_dir`` if not given.
    database_url: Secret = None
    #: The broker; the Redis that ``helixq up`` runs in ``data_dir`` if not given.
    redis_url: Secret = None
    #: The folder of the embedded database and Redis.
    data_dir: Path = Field(default=Path("data"), validate_default=True)
    #: The address of the web, also for ``ask`` and ``chat``.
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=1, le=65535)
    #: The port at which a worker serves metrics; none if not given.
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    #: Whether API keys are required; ``auto`` requires them unless the web listens on loopback only.
    auth: Literal["auto", "required", "off"] = "auto"
    #: The API key that ``ask`` and ``chat`` send.
    api_key: Secret = None
    #: The maximum number of queued jobs. More are refused with 429.
    max_queued: int = Field(default=10_000, ge=1)
    #: The maximum number of seconds of a job, from the start of its first stage.
    job_timeout: float = Field(default=3600, gt=0, le=31_536_000, allow_inf_nan=False)
    #: Seconds that a job that has begun waits for a worker with its model before it is restarted.
    model_timeout: float = Field(default=600, ge=0, le=31_536_000, allow_inf_nan=False)
    #: Days after which ended jobs are deleted; 0 for never.
    retention_days: int = Field(default=0, ge=0, le=36_500)
    #: Networks that webhooks may be sent to though their addresses are not public, and without TLS.
    webhook_allowed_networks: Annotated[tuple[Network, ...], _parsed(networks)] = ()
    #: The name of the transparency log in its checkpoints; one is made with the log if not given.
    log_origin: str | None = None
    #: The key that signs the transparency log; the database keeps one if not given.
    log_key: Secret = None
    #: Witnesses that cosign the transparency log.
    log_witnesses: Annotated[tuple[Witness, ...], _parsed(witnesses)] = ()
    #: Where ended jobs are sent as OpenTelemetry's traces.
    otlp_endpoint: Secret = None
    log_format: Literal["text", "json"] = "text"

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError as error:
            raise ValueError("there is no such home directory") from error

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if ":" in value:
            ipaddress.ip_address(value)
        elif not re.fullmatch(r"[\w.%-]+", value):
            raise ValueError("it should be a host name or an IP address")
        return value

    @field_validator("metrics_port")
    @classmethod
    def _metrics_port(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value == info.data.get("port"):
            raise ValueError("it is HELIXQ_PORT too, where the web has /metrics itself")
        return value

    @field_validator("api_key", "engine_api_key")
    @classmethod
    def _api_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[!-~]+", value):
            raise ValueError("it should be one word of ASCII characters")
        return value

    @field_validator("log_origin")
    @classmethod
    def _log_origin(cls, value: str | None) -> str | None:
        from jobs.tlog.note import is_name

        if value is not None and not is_name(value):
            raise ValueError("it should be a name such as example.com/log: no spaces, no plus")
        return value

    @field_validator("log_key")
    @classmethod
    def _log_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        # Imported here since few commands need it.
        from jobs.tlog.note import Signer

        if value is None:
            return None
        name, origin = Signer.parse(value).name, info.data.get("log_origin")
        if origin not in (None, name):
            raise ValueError(f"it is a key of {name}, and HELIXQ_LOG_ORIGIN is {origin}")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _otlp_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not is_http(urlsplit(value)):
            raise ValueError("it should be an address such as http://127.0.0.1:6006/v1/traces")
        return value

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        # Imported here, and below, since it imports SQLAlchemy, which clients of a server do without.
        from jobs import database_url

        return database_url.checked(value)

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: str | None) -> str | None:
        return None if value is None else redis_url.checked(value)

    @cached_property
    def database(self) -> str:
        """The database's URL."""
        if self.database_url is not None:
            return self.database_url
        from jobs import database_url

        return database_url.of_file(self.data_dir / "helixq.sqlite3")

    @cached_property
    def redis_socket(self) -> Path:
        """The Unix socket of the embedded Redis: in ``data_dir`` unless its path is too long or unusual."""
        name = f"helixq-{os.getuid()}-{hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]}"
        # TMPDIR may be too long as well.
        last = Path("/tmp") / name / "redis.sock"  # noqa: S108 (who makes the folder checks whose it is)
        sockets = (self.data_dir / "redis.sock", Path(tempfile.gettempdir()) / name / "redis.sock")
        return next(filter(_can_be_socket, sockets), last)

    @cached_property
    def redis(self) -> str:
        """The Redis URL."""
        return self.redis_url or redis_url.checked(f"unix://{self.redis_socket}")

    @cached_property
    def loopback(self) -> bool:
        """Whether the web is reachable from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @cached_property
    def auth_required(self) -> bool:
        """Whether the web requires API keys."""
        return self.auth == "required" or (self.auth == "auto" and not self.loopback)

    @cached_property
    def url(self) -> str:
        """The web's URL for clients on this machine."""
        return self.url_of(self.port)

    def url_of(self, port: int) -> str:
        """Return the URL, for clients on this machine, of what listens on a port of `host`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (does not bind)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from environment variables (the process's own if not given).

    An empty variable counts as not given: docker compose passes ``${X:-}`` so. A secret may be in a file, which
    ``HELIXQ_X_FILE`` names.

    Raises:
        SettingsError: a variable is unknown or its value is wrong.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, str] = {}
    # `HELIXQ_X` comes before `HELIXQ_X_FILE`.
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX):
            continue
        field = variable.removeprefix(PREFIX).lower()
        secret = field.removesuffix(FILE_SUFFIX.lower())
        if variable == variable.upper() and secret != field and secret in SECRETS:
            if value.strip() and (text := _read_secret(variable, value.strip())):
                if secret in values:
                    raise SettingsError(
                        f"{PREFIX}{secret.upper()} and {variable} are both set; leave one of them out"
                    )
                values[secret] = text
            continue
        if variable != variable.upper() or field not in Settings.model_fields:
            close = difflib.get_close_matches(field, Settings.model_fields, n=1)
            hint = f"did you mean {PREFIX}{close[0].upper()}?" if close else "see docs/settings.md"
            raise SettingsError(f"{variable} is not a setting of HelixQ; {hint}")
        if value.strip():
            values[field] = value.strip()
    try:
        # Not strict: all values are text, and are converted to numbers and paths.
        settings = Settings.model_validate(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        hidden = field in SECRETS or field == "engine_url"
        shown = "" if hidden else f"={values[field]}"
        # pydantic says "Input should be a valid integer, unable to parse string as an integer".
        reason = first["msg"].removeprefix("Value error, ")
        reason = re.sub("^(Input|String) should", "it should", reason)
        reason = re.sub(", unable to parse string as an? [a-z]+$", "", reason)
        raise SettingsError(f"{PREFIX}{field.upper()}{shown} is wrong: {reason}") from error
    _check_engine(settings)
    return settings


def _read_secret(variable: str, path: str) -> str:
    """Return what the file of a secret has, without white space around it; an empty file counts as not given.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{variable}={path} cannot be read ({reason}); name a file") from error


def _check_engine(settings: Settings) -> None:
    """Check that the settings of the engine fit each other.

    Raises:
        SettingsError: one is missing, or has no effect with the others.
    """
    given = settings.model_fields_set
    if settings.engine != "openai":
        for field in ("engine_url", "engine_api_key"):
            if field in given:
                raise SettingsError(
                    f"{PREFIX}{field.upper()} has no effect with HELIXQ_ENGINE={settings.engine}; "
                    "set HELIXQ_ENGINE=openai, or leave it out"
                )
        return
    if not settings.engine_url:
        raise SettingsError(
            "HELIXQ_ENGINE=openai needs HELIXQ_ENGINE_URL, the address of a server such as http://host:8000/v1"
        )
    if "adapters" not in given:
        raise SettingsError(
            "HELIXQ_ENGINE=openai needs HELIXQ_ADAPTERS, the name of each role's model at the server: "
            "actor=…,critic=…,regenerator=…"
        )
    # The server decides them. Who sets them would believe that they are kept.
    for field, neutral in (
        ("dtype", "auto"),
        ("quantization", "none"),
        ("device", "auto"),
        ("split_special_tokens", False),
    ):
        if field in given and getattr(settings, field) != neutral:
            raise SettingsError(
                f"{PREFIX}{field.upper()} has no effect with HELIXQ_ENGINE=openai: the server decides it; "
                "leave it out"
            )
