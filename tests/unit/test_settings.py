"""Settings are typed and validated, and an error names the setting in one sentence."""

from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from jobs import settings
from jobs.pipeline import Role
from jobs.settings import SettingsError
from jobs.tlog.cosignature import ED25519, ML_DSA_44, Cosigner
from jobs.tlog.note import Signer


def test_defaults_run_the_demo() -> None:
    loaded = settings.load({})
    assert Path(loaded.base_model).parts[-3:] == ("demo", "checkpoint", "base")
    assert set(loaded.adapters) == set(Role)
    assert loaded.url == "http://127.0.0.1:8000"
    assert loaded.data_dir.is_absolute()
    assert loaded.database.startswith("sqlite:////")
    assert loaded.redis.startswith("unix:///")


def test_values_are_read() -> None:
    loaded = settings.load(
        {
            "HELIXQ_ADAPTERS": "actor=./a, critic=org/critic@main ,regenerator=/c",
            "HELIXQ_PORT": " 9000 ",
            "HELIXQ_DATABASE_URL": "postgres://u:p@db/helixq",
            "HELIXQ_MAX_CONTEXT": "2048",
            "HELIXQ_DTYPE": "",
            "PATH": "/bin",
        }
    )
    assert loaded.adapters[Role.CRITIC] == "org/critic@main"
    assert loaded.port == 9000
    assert loaded.database == "postgresql+psycopg://u:p@db/helixq"
    assert loaded.max_context == 2048
    assert loaded.dtype == "auto"


def test_slots_are_a_number_or_auto() -> None:
    assert settings.load({}).slots == "auto"
    assert settings.load({"HELIXQ_SLOTS": "auto"}).slots == "auto"
    assert settings.load({"HELIXQ_SLOTS": " 1024 "}).slots == 1024


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HELIXQ_PORT", "http", "HELIXQ_PORT=http is wrong: it should be a valid integer$"),
        ("HELIXQ_PORT", "70000", "HELIXQ_PORT=70000 is wrong: .*65535"),
        ("HELIXQ_METRICS_PORT", "0", "HELIXQ_METRICS_PORT=0 is wrong: .*1"),
        ("HELIXQ_METRICS_PORT", "8000", "HELIXQ_METRICS_PORT=8000 is wrong: it is HELIXQ_PORT"),
        ("HELIXQ_HOST", "[::1]", r"HELIXQ_HOST=\[::1\] is wrong: '\[::1\]' does not appear to be"),
        ("HELIXQ_HOST", "localhost:80", "'localhost:80' does not appear to be an IPv4 or IPv6"),
        ("HELIXQ_HOST", "http//a", "HELIXQ_HOST=http//a is wrong: it should be a host name or an"),
        ("HELIXQ_HOST", "a b", "HELIXQ_HOST=a b is wrong: it should be a host name or an IP addr"),
        ("HELIXQ_DTYPE", "int8", "HELIXQ_DTYPE=int8 is wrong: it should be .*'float16'"),
        (
            "HELIXQ_DEVICE",
            "tpu",
            "HELIXQ_DEVICE=tpu is wrong: it should be auto, cpu, cuda, or cuda:N",
        ),
        ("HELIXQ_SLOTS", "0", "HELIXQ_SLOTS=0 is wrong: .*from 1 to 1024, or auto$"),
        ("HELIXQ_SLOTS", "1025", "HELIXQ_SLOTS=1025 is wrong: .*from 1 to 1024, or auto$"),
        ("HELIXQ_SLOTS", "many", "HELIXQ_SLOTS=many is wrong: .*from 1 to 1024, or auto$"),
        ("HELIXQ_SLOTS", "1.5", "HELIXQ_SLOTS=1.5 is wrong: .*from 1 to 1024, or auto$"),
        ("HELIXQ_AUTH", "on", "HELIXQ_AUTH=on is wrong: .*'required'"),
        ("HELIXQ_API_KEY", "hq_ü", "HELIXQ_API_KEY is wrong: .*ASCII"),
        ("HELIXQ_JOB_TIMEOUT", "inf", "HELIXQ_JOB_TIMEOUT=inf is wrong"),
        ("HELIXQ_ADAPTERS", "actor=a,critic=b", "regenerator is missing"),
        ("HELIXQ_ADAPTERS", "actor=a", "critic, regenerator are missing"),
        ("HELIXQ_ADAPTERS", "actor=a,critic=b,judge=c", "'judge' is not a role"),
        ("HELIXQ_ADAPTERS", "actor=a,critic,regenerator=c", "critic needs a folder"),
        ("HELIXQ_ADAPTERS", "actor=a,actor=b,critic=b", "actor is given twice"),
        ("HELIXQ_DATABASE_URL", "mysql://db/x", "HELIXQ_DATABASE_URL is wrong: only sqlite"),
        ("HELIXQ_DATABASE_URL", "sqlite://", "in-memory SQLite"),
        ("HELIXQ_DATABASE_URL", "nonsense", "not a database URL"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?colour=red", "colour is not an option it takes"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?replication=true", "replication is not"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?sslmode=yes", "sslmode.*yes"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?target_session_attrs=w", "target_session_attrs"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?channel_binding=on", "channel_binding.*on"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?gssencmode=on", "gssencmode.*on"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?service=none", "service .none. not found"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?connect_timeout=5s", "connect_timeout should be"),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?keepalives=on", "keepalives should be one whole"),
        (
            "HELIXQ_DATABASE_URL",
            "postgresql://h/x?sslmode=require&sslmode=allow",
            "sslmode is given",
        ),
        ("HELIXQ_DATABASE_URL", "postgresql://h/x?client_encoding=latin1", "can only be UTF8"),
        (
            "HELIXQ_DATABASE_URL",
            "postgresql://h/x?prepare_threshold=on",
            "prepare_threshold should",
        ),
        ("HELIXQ_DATABASE_URL", "postgresql://h:70000/x", "invalid port number"),
        ("HELIXQ_DATABASE_URL", "postgresql:///x?host=a,b&port=1,2,3", "hosts and ports cannot"),
        ("HELIXQ_DATABASE_URL", "sqlite:///x?mode=ro&uri=true", "mode is not an option it takes"),
        ("HELIXQ_DATABASE_URL", "sqlite:///x?cache=shared", "cache is not an option it takes"),
        ("HELIXQ_DATABASE_URL", "sqlite:///x?timeout=long", "timeout should be a number"),
        ("HELIXQ_DATABASE_URL", "sqlite://folder/x", "three slashes"),
        ("HELIXQ_REDIS_URL", "localhost:6379", "should start with redis://"),
        ("HELIXQ_REDIS_URL", "redis://h:port", "its port is not a number"),
        ("HELIXQ_REDIS_URL", "redis://h/0?protocol=2", "protocol is not an option it takes"),
        ("HELIXQ_REDIS_URL", "redis:/h/0", "should start with redis://"),
        ("HELIXQ_REDIS_URL", "sentinel://h:1", "should start with .* or rediss.sentinel://"),
        ("HELIXQ_REDIS_URL", "redis://a,b/0", "only sentinels may be several hosts"),
        ("HELIXQ_REDIS_URL", "redis+sentinel://a,b", "the name of their primary"),
        ("HELIXQ_REDIS_URL", "redis+sentinel://a:x,b/m", "its port is not a number"),
        ("HELIXQ_REDIS_URL", "redis+sentinel://a/m/x", "'x' is not the number of a database"),
        ("HELIXQ_REDIS_URL", "redis://h?sentinel_password=p", "sentinel_password needs Sentinel"),
        ("HELIXQ_REDIS_URL", "redis+sentinel://a/m?ssl_keyfile=k", "ssl_keyfile needs TLS"),
        ("HELIXQ_REDIS_URL", "redis://h/x", "'x' is not the number of a database"),
        ("HELIXQ_REDIS_URL", "redis://h/0/1", "'0/1' is not the number of a database"),
        ("HELIXQ_REDIS_URL", "unix:///r.sock?db=x", "'x' is not the number of a database"),
        ("HELIXQ_REDIS_URL", "redis://h/1?db=2", "number is given twice"),
        ("HELIXQ_REDIS_URL", "redis://h?db=1&db=2", "an option is given twice"),
        ("HELIXQ_REDIS_URL", "redis://:a#b@h", "must be written %23"),
        ("HELIXQ_REDIS_URL", "unix://run/redis.sock", "three slashes"),
        ("HELIXQ_REDIS_URL", "unix://", "three slashes"),
        ("HELIXQ_REDIS_URL", "redis://h?ssl_cert_reqs=none", "ssl_cert_reqs needs TLS: rediss://"),
        ("HELIXQ_REDIS_URL", "rediss://h?ssl_colour=red", "ssl_colour is not an option it takes"),
        ("HELIXQ_REDIS_URL", "rediss://h?ssl_cert_reqs=CERT_NONE", "one of none, optional, req"),
        ("HELIXQ_REDIS_URL", "rediss://h?ssl_check_hostname=no", "should be one of true, false"),
        ("HELIXQ_DATA_DIR", "~nobody-here/x", "there is no such home directory"),
        ("HELIXQ_WEBHOOK_ALLOWED_NETWORKS", "10.0.0.1/8", "10.0.0.1/8 has host bits set"),
        ("HELIXQ_WEBHOOK_ALLOWED_NETWORKS", "10.0.0.0/8,x", "'x' does not appear to be"),
        ("HELIXQ_JOB_TIMEOUT", "1e12", "HELIXQ_JOB_TIMEOUT=1e12 is wrong"),
        ("HELIXQ_PROT", "1", "HELIXQ_PROT is not a setting of HelixQ; did you mean HELIXQ_PORT?"),
        ("HELIXQ_port", "1", "HELIXQ_port is not a setting"),
    ],
)
def test_a_wrong_setting_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as excinfo:
        settings.load({variable: value})
    assert "\n" not in str(excinfo.value)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("DATABASE", "mysql://root:hunter2@db/x"),
        ("DATABASE", "postgresql://root:hunter2@db/x?sslmode=yes"),
        ("REDIS", "redis://:hunter2/3@db/0"),
        ("REDIS", "redis://:hunter2@db/x"),
    ],
)
def test_passwords_are_not_repeated(variable: str, url: str) -> None:
    with pytest.raises(SettingsError) as excinfo:
        settings.load({f"HELIXQ_{variable}_URL": url})
    assert "hunter2" not in str(excinfo.value)


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://u:p@a:5432,b:5433/x", "a,b", "5432,5433"),
        ("postgresql://a,b/x?target_session_attrs=read-write", "a,b", ","),
        ("postgresql://[::1]:5,b/x", "::1,b", "5,"),
        ("postgresql://%2Frun%2Fpostgresql/x", "/run/postgresql", None),
        ("postgresql:///x?host=a,b&port=1,2", "a,b", "1,2"),
        ("postgresql:///x?host=a:1&host=b:2", "a,b", "1,2"),
    ],
)
def test_several_hosts_are_parsed_as_by_libpq(url: str, hosts: str, ports: str | None) -> None:
    parsed = sa.make_url(settings.load({"HELIXQ_DATABASE_URL": url}).database)
    _, options = parsed.get_dialect()().create_connect_args(parsed)
    assert (options["host"], options.get("port")) == (hosts, ports)
    assert options["dbname"] == "x"


@pytest.mark.parametrize(
    ("host", "loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:8000"),
        ("::1", True, "http://[::1]:8000"),
        ("localhost", True, "http://localhost:8000"),
        ("0.0.0.0", False, "http://127.0.0.1:8000"),  # noqa: S104 (nothing is bound)
        ("helix.example", False, "http://helix.example:8000"),
    ],
)
def test_the_url_follows_host_and_port(host: str, loopback: bool, url: str) -> None:
    loaded = settings.load({"HELIXQ_HOST": host})
    assert (loaded.loopback, loaded.url) == (loopback, url)


@pytest.mark.parametrize(
    ("auth", "host", "required"),
    [
        ("auto", "localhost", False),
        ("auto", "127.0.0.2", False),
        ("auto", "0.0.0.0", True),  # noqa: S104 (nothing is bound)
        ("auto", "helix.example", True),
        ("required", "127.0.0.1", True),
        ("off", "0.0.0.0", False),  # noqa: S104 (nothing is bound)
    ],
)
def test_keys_are_required_beyond_this_machine(auth: str, host: str, required: bool) -> None:
    found = settings.load({"HELIXQ_AUTH": auth, "HELIXQ_HOST": host})
    assert found.auth_required is required


@pytest.mark.parametrize("folder", ["/a b", "/a#b", "/a?b", "/a%20b", "/ä"])
def test_odd_data_folders_are_named_exactly(folder: str) -> None:
    loaded = settings.load({"HELIXQ_DATA_DIR": folder})
    assert sa.make_url(loaded.database).database == f"{folder}/helixq.sqlite3"
    parameters = redis.Redis.from_url(loaded.redis).get_connection_kwargs()
    assert parameters["path"] == str(loaded.redis_socket)


def test_a_long_data_folder_still_gets_a_socket() -> None:
    loaded = settings.load({"HELIXQ_DATA_DIR": "/" + "long/" * 30})
    assert len(str(loaded.redis_socket)) <= settings.MAX_SOCKET_PATH
    neighbor = settings.load({"HELIXQ_DATA_DIR": "/" + "long/" * 31})
    assert neighbor.redis_socket != loaded.redis_socket


@pytest.mark.parametrize("folder", ["/" + "long/" * 30, "/a#b"])
def test_odd_folders_everywhere_still_leave_a_socket(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", folder)
    found = settings.load({"HELIXQ_DATA_DIR": folder}).redis_socket
    assert found.parent.parent == Path("/tmp")  # noqa: S108 (nothing is made there)


def test_witnesses_are_keys_and_addresses() -> None:
    keys = [
        str(Cosigner("witness.example/w1", ED25519, bytes(32))),
        str(Cosigner("other.example", ML_DSA_44, bytes(1312))),
    ]
    value = f"{keys[0]} https://witness.example/w1, {keys[1]} http://127.0.0.1:7380"
    loaded = settings.load({"HELIXQ_LOG_WITNESSES": value}).log_witnesses
    assert loaded == ((keys[0], "https://witness.example/w1"), (keys[1], "http://127.0.0.1:7380"))
    assert settings.load({}).log_witnesses == ()
    log_key = str(Signer.generate("example.com/log").verifier)
    for value, message in (
        (keys[0], "should be a key and an address"),
        (f"{log_key} https://a.example", "a witness's key should be"),
        (f"other.example/{keys[0]} https://a.example", "does not belong to its name and key"),
        (f"{keys[0]} ftp://a.example", "an address that begins with https:// or http://"),
        (f"{keys[0]} https://", "an address that begins with https:// or http://"),
        (f"{keys[0]} https://a, {keys[0]} https://b", "a witness is given twice"),
    ):
        with pytest.raises(settings.SettingsError, match=message):
            settings.load({"HELIXQ_LOG_WITNESSES": value})


def test_a_receiver_of_traces_is_an_address_and_never_shown() -> None:
    address = "https://user:secret@traces.example/v1/traces"
    assert settings.load({"HELIXQ_OTLP_ENDPOINT": address}).otlp_endpoint == address
    with pytest.raises(settings.SettingsError, match="should be an address such as") as caught:
        settings.load({"HELIXQ_OTLP_ENDPOINT": address.replace("https", "ftp")})
    assert "secret" not in str(caught.value)


def test_a_key_of_the_log_is_checked_and_never_shown() -> None:
    key = Signer.generate("example.com/log").to_text()
    assert settings.load({"HELIXQ_LOG_KEY": key}).log_key == key
    for variables, message in (
        ({"HELIXQ_LOG_KEY": key[:-2]}, "HELIXQ_LOG_KEY is wrong: a signing key should be"),
        (
            {"HELIXQ_LOG_KEY": key, "HELIXQ_LOG_ORIGIN": "other"},
            "HELIXQ_LOG_KEY is wrong: it is a key of example.com/log, and HELIXQ_LOG_ORIGIN is other",
        ),
        ({"HELIXQ_LOG_ORIGIN": "a b"}, "HELIXQ_LOG_ORIGIN=a b is wrong: it should be a name"),
    ):
        with pytest.raises(settings.SettingsError, match=message) as caught:
            settings.load(variables)
        assert key[40:-2] not in str(caught.value)


#: What `ENGINE=openai` needs.
ELSEWHERE = {
    "HELIXQ_ENGINE": "openai",
    "HELIXQ_ENGINE_URL": "http://gpu1:8000/v1, https://gpu2/v1/",
    "HELIXQ_ADAPTERS": "actor=a,critic=c,regenerator=r",
}


def test_an_engine_elsewhere_is_set_as_a_whole() -> None:
    loaded = settings.load({**ELSEWHERE, "HELIXQ_ENGINE_API_KEY": "sk-1", "HELIXQ_DEVICE": ""})
    assert loaded.engine_url == ("http://gpu1:8000/v1", "https://gpu2/v1")
    assert loaded.adapters[Role.CRITIC] == "c"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HELIXQ_ENGINE": "vllm"}, "HELIXQ_ENGINE=vllm is wrong: .*'openai'"),
        ({"HELIXQ_ENGINE_URL": ""}, "HELIXQ_ENGINE=openai needs HELIXQ_ENGINE_URL"),
        ({"HELIXQ_ADAPTERS": ""}, "HELIXQ_ENGINE=openai needs HELIXQ_ADAPTERS"),
        ({"HELIXQ_ENGINE": ""}, "HELIXQ_ENGINE_URL has no effect with HELIXQ_ENGINE=auto"),
        ({"HELIXQ_ENGINE": "reference"}, "HELIXQ_ENGINE_URL has no effect with .*=reference"),
        ({"HELIXQ_ENGINE_URL": "gpu1:8000/v1"}, "HELIXQ_ENGINE_URL is wrong: .*http://host:8000"),
        ({"HELIXQ_ENGINE_URL": "http://gpu1:8000"}, "HELIXQ_ENGINE_URL is wrong: .*ends in /v1"),
        ({"HELIXQ_ENGINE_URL": "http://h/v1?key=x"}, "HELIXQ_ENGINE_URL is wrong: .*ends in /v1"),
        ({"HELIXQ_ENGINE_URL": "http://u:secret@h/v1"}, "HELIXQ_ENGINE_URL is wrong: .*no user"),
        ({"HELIXQ_ENGINE_URL": "http://h:x/v1"}, "HELIXQ_ENGINE_URL is wrong"),
        ({"HELIXQ_ENGINE_URL": "http://h/v1,http://h/v1/"}, "is wrong: .*given twice"),
        ({"HELIXQ_ENGINE_API_KEY": "secret ü"}, "HELIXQ_ENGINE_API_KEY is wrong: .*ASCII"),
        ({"HELIXQ_DTYPE": "bfloat16"}, "HELIXQ_DTYPE has no effect with HELIXQ_ENGINE=openai"),
        ({"HELIXQ_DEVICE": "cuda"}, "HELIXQ_DEVICE has no effect with HELIXQ_ENGINE=openai"),
        ({"HELIXQ_QUANTIZATION": "4bit"}, "HELIXQ_QUANTIZATION has no effect"),
        ({"HELIXQ_SPLIT_SPECIAL_TOKENS": "true"}, "HELIXQ_SPLIT_SPECIAL_TOKENS has no effect"),
    ],
)
def test_half_an_engine_elsewhere_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        settings.load({**ELSEWHERE, **changes})
    assert "secret" not in str(caught.value)


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for name, value in {
        "DATABASE_URL": "postgresql+psycopg://u:p@db/helixq",
        "REDIS_URL": "redis://:p@redis:6379/0",
        "API_KEY": "hq_secret",
    }.items():
        file.write_text(f"{value}\n")
        loaded = settings.load({f"HELIXQ_{name}_FILE": str(file), f"HELIXQ_{name}": ""})
        assert getattr(loaded, name.lower()) == value
    assert {f"{name}_FILE".lower() for name in ("PORT", "HOST")}.isdisjoint(settings.SECRETS)


def test_an_empty_file_of_a_secret_counts_as_not_set(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("\n")
    assert settings.load({"HELIXQ_LOG_KEY_FILE": str(file)}) == settings.load({})


def test_a_file_of_a_secret_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    missing = {"HELIXQ_API_KEY_FILE": str(file)}
    with pytest.raises(
        SettingsError, match=r"HELIXQ_API_KEY_FILE=.* \(No such file or directory\)"
    ):
        settings.load(missing)
    file.write_text("two words")
    with pytest.raises(SettingsError, match=r"^HELIXQ_API_KEY is wrong") as caught:
        settings.load(missing)
    assert "two words" not in str(caught.value)
    with pytest.raises(SettingsError, match="HELIXQ_API_KEY and HELIXQ_API_KEY_FILE are both set"):
        settings.load({"HELIXQ_API_KEY": "hq_secret", **missing})
    with pytest.raises(SettingsError, match="HELIXQ_PORT_FILE is not a setting"):
        settings.load({"HELIXQ_PORT_FILE": str(file)})
