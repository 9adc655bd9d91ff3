"""A mistake in the configuration ends a command with 2 and one line: the key, where it stands, and what was meant."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.__main__ import main as local
from deploy.local.config import load_local_settings
from schemas.errors import ConfigError, run_command
from schemas.settings import load_settings
from streaming.__main__ import main as streaming
from streaming.config import Settings
from trainer.config import Settings as TrainerSettings

pytestmark = pytest.mark.usefixtures("empty_place")


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a user reads who runs `python -m streaming lookup user-1`: one line, and the exit code 2."""

    def run(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["streaming", *(argv or ("lookup", "user-1"))])
        with pytest.raises(SystemExit) as ended:
            streaming()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err.removeprefix("error: ").rstrip("\n")

    return run


IN_THE_FILE = {
    "unknown key": ('namspace = "x"', "namspace in freshrec.toml is no setting; did you mean namespace?"),
    "unknown key of a section": (
        '[kafka]\nbootstap = "x"',
        "kafka.bootstap in freshrec.toml is no setting; did you mean kafka.bootstrap?",
    ),
    "half a key": (
        "[streaming]\nfreshness = 5",
        "streaming.freshness in freshrec.toml is no setting; did you mean streaming.freshness_ms?",
    ),
    "unknown section": ("[casandra]\nport = 5", "casandra in freshrec.toml is no setting; did you mean cassandra?"),
    "a key near to none": ("qqqq = 1", "qqqq in freshrec.toml is no setting; known keys: namespace, kafka, kafka.user"),
    "no number": (
        '[cassandra]\nport = "many"',
        "cassandra.port = 'many' in freshrec.toml: Input should be a valid integer, unable to parse string as an "
        "integer; correct it",
    ),
    "out of range": (
        "[cassandra]\nport = 70000",
        "cassandra.port = 70000 in freshrec.toml: Input should be less than or equal to 65535; correct it",
    ),
    "a number with its unit": (
        '[streaming]\nfreshness_ms = "30s"',
        "streaming.freshness_ms = '30s' in freshrec.toml: Input should be a valid integer, unable to parse string as "
        "an integer; write it as a number of milliseconds, without its unit",
    ),
    "seconds for milliseconds": (
        "[streaming]\nfreshness_ms = 0.03",
        "streaming.freshness_ms = 0.03 in freshrec.toml: Input should be a valid integer, got a number with a "
        "fractional part; write it as a number of milliseconds, without its unit",
    ),
    "half days": (
        "[streaming]\nrow_ttl_days = 0",
        "streaming.row_ttl_days = 0 in freshrec.toml: Input should be greater than or equal to 1; "
        "write it as a number of days, without its unit",
    ),
    "a list that is none": (
        '[cassandra]\nhosts = "10.0.0.1"',
        "cassandra.hosts = '10.0.0.1' in freshrec.toml: Input should be a valid list; correct it",
    ),
    "a list of nothing": (
        "[cassandra]\nhosts = []",
        "cassandra.hosts = [] in freshrec.toml: List should have at least 1 item after validation, not 0; correct it",
    ),
    "an element that is no text": (
        '[cassandra]\nhosts = ["10.0.0.1", 5]',
        "cassandra.hosts.1 = 5 in freshrec.toml: Input should be a valid string; correct it",
    ),
    "a section that is none": (
        'kafka = "127.0.0.1:9092"',
        "kafka = '127.0.0.1:9092' in freshrec.toml: Input should be a valid dictionary or instance of KafkaSettings; ",
    ),
    "no name": (
        'namespace = "Shop 1"',
        "namespace = 'Shop 1' in freshrec.toml: String should match pattern '^([a-z][a-z0-9_]{0,30})?$'; correct it",
    ),
    "more than ever wanted": (
        "[streaming]\nparallelism = 4",
        "streaming in freshrec.toml: parallelism 4 is above largest_parallelism 2; lower the one, or raise the other "
        "before the first start",
    ),
    "a name without a password": (
        '[cassandra]\nusername = "freshrec"',
        "cassandra in freshrec.toml: username and password belong together; give both or none of them",
    ),
    "no TOML": ("namespace = ", "freshrec.toml: Invalid value (at line 1, column 13); correct the file"),
    "the same key twice": (
        'namespace = "a"\nnamespace = "b"',
        "freshrec.toml: Cannot overwrite a value (at line 2, col",
    ),
}


@pytest.mark.parametrize(("text", "line"), IN_THE_FILE.values(), ids=IN_THE_FILE)
def test_a_mistake_in_the_file(text: str, line: str, empty_place: Path, refusal: Callable[..., str]) -> None:
    (empty_place / "freshrec.toml").write_text(text + "\n")
    assert refusal().startswith(line)


def test_a_file_that_is_no_text(empty_place: Path, refusal: Callable[..., str]) -> None:
    (empty_place / "freshrec.toml").write_bytes(b'namespace = "\xff"\n')
    assert refusal().startswith("freshrec.toml: 'utf-8' codec can't decode byte 0xff")


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]) -> None:
    monkeypatch.setenv("FRESHREC_CONFIG", "/nowhere/x.toml")
    assert refusal() == "FRESHREC_CONFIG names /nowhere/x.toml, which is no file; correct it or unset it"


def test_a_file_with_another_name_is_named(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    (empty_place / "shop.toml").write_text("[kafka]\nbootstap = 1\n")
    monkeypatch.setenv("FRESHREC_CONFIG", "shop.toml")
    assert refusal() == "kafka.bootstap in shop.toml is no setting; did you mean kafka.bootstrap?"


IN_THE_ENVIRONMENT = {
    "unknown key": ("FRESHREC_NAMESPCE", "x", "FRESHREC_NAMESPCE is no setting; did you mean namespace?"),
    "unknown key of a section": (
        "FRESHREC_KAFKA__BOOTSTRP",
        "x",
        "FRESHREC_KAFKA__BOOTSTRP is no setting; did you mean kafka.bootstrap?",
    ),
    "half a key": (
        "FRESHREC_STREAMING__FRESHNESS",
        "1",
        "FRESHREC_STREAMING__FRESHNESS is no setting; did you mean streaming.freshness_ms?",
    ),
    "unknown section": (
        "FRESHREC_CASANDRA__PORT",
        "1",
        "FRESHREC_CASANDRA__PORT is no setting; did you mean cassandra.port?",
    ),
    "a key near to none": (
        "FRESHREC_QQQQ",
        "1",
        "FRESHREC_QQQQ is no setting; known keys: namespace, kafka, kafka.user",
    ),
}


@pytest.mark.parametrize(("name", "value", "line"), IN_THE_ENVIRONMENT.values(), ids=IN_THE_ENVIRONMENT)
def test_an_unknown_key_in_the_environment(
    name: str, value: str, line: str, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"environment variable {line}")


WRONG = {
    "no number": ("FRESHREC_CASSANDRA__PORT", "many", "cassandra.port = 'many' in "),
    "no list": (
        "FRESHREC_CASSANDRA__HOSTS",
        "10.0.0.1",
        "environment variable FRESHREC_CASSANDRA__HOSTS cannot be read; ",
    ),
    "no section": (
        "FRESHREC_KAFKA",
        "127.0.0.1:9092",
        "environment variable FRESHREC_KAFKA cannot be read; write a list",
    ),
    "a unit": ("FRESHREC_STREAMING__FRESHNESS_MS", "30 ms", "streaming.freshness_ms = '30 ms' in "),
}


@pytest.mark.parametrize(("name", "value", "key"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_in_the_environment_names_its_variable(
    name: str, value: str, key: str, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.setenv(name, value)
    line = refusal()
    assert line.startswith(key)
    assert name in line


def test_a_contradiction_names_both_places(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    (empty_place / "freshrec.toml").write_text("[streaming]\nlargest_parallelism = 4\n")
    monkeypatch.setenv("FRESHREC_STREAMING__PARALLELISM", "8")
    assert refusal() == (
        "streaming in environment variable FRESHREC_STREAMING__PARALLELISM and freshrec.toml: parallelism 8 is above "
        "largest_parallelism 4; lower the one, or raise the other before the first start"
    )


def test_a_stack_with_more_taskmanagers_than_shards_is_not_begun(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = empty_place / "state"
    monkeypatch.setattr(sys, "argv", ["local", "up", "--state", str(state), "--taskmanagers", "4"])
    with pytest.raises(SystemExit) as ended:
        local()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: streaming in a flag: parallelism 4 is above largest_parallelism 2; "
    )
    assert not list(state.glob("log/*"))


def test_each_command_checks_its_own_section_and_the_local_stack_its_own(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_place / "freshrec.toml").write_text("[trainer]\nfirst_pases = 3\n")
    load_settings(Settings)
    with pytest.raises(ConfigError, match=r"trainer\.first_pases in freshrec\.toml .* trainer\.first_passes\?"):
        load_settings(TrainerSettings)
    monkeypatch.setenv("FRESHREC_LOCAL_PORTBASE", "9000")
    with pytest.raises(ConfigError, match="FRESHREC_LOCAL_PORTBASE is no setting; did you mean port_base"):
        load_local_settings()


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────

SECRET = "correct horse"  # noqa: S105
ON_THE_COMMAND_LINE = {
    "a word": ("--password", SECRET),
    "with its section": (f"--cassandra.password={SECRET}",),
    "a token": ("--registry-token", SECRET),
    "in an address": ("--registry", f"https://freshrec:{SECRET}@registry.example"),
}


@pytest.mark.parametrize("flags", ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    flags: tuple[str, ...], refusal: Callable[..., str]
) -> None:
    line = refusal("lookup", "user-1", *flags)
    assert line == (
        f"{flags[0].split('=')[0]} puts a secret on the command line, where every user of this machine can read it; "
        "set FRESHREC_KAFKA__PASSWORD or FRESHREC_CASSANDRA__PASSWORD, or name a file of it as password_file"
    )


def test_every_command_line_refuses_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", "show", "--password=x"])
    with pytest.raises(SystemExit):
        run_command(lambda: pytest.fail("it ran all the same"), "trainer")
    assert capsys.readouterr().err.startswith("trainer: --password puts a secret on the command line")


def with_user(folder: Path, more: str) -> None:
    (folder / "freshrec.toml").write_text(f'[cassandra]\nusername = "freshrec"\n{more}\n')
    (folder / "freshrec.toml").chmod(0o644)


def test_a_secret_comes_from_the_environment_or_from_a_file_of_its_owner(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = empty_place / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    with_user(empty_place, 'password_file = "secret"')
    assert load_settings(Settings).cassandra.secret() == SECRET
    with_user(empty_place, "")
    monkeypatch.setenv("FRESHREC_CASSANDRA__PASSWORD", SECRET)
    settings = load_settings(Settings)
    assert settings.cassandra.secret() == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.describe()}"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_that_others_can_read_is_refused(mode: int, empty_place: Path, refusal: Callable[..., str]) -> None:
    file = empty_place / "secret"
    file.write_text(SECRET)
    file.chmod(mode)
    with_user(empty_place, 'password_file = "secret"')
    assert refusal() == (
        f"{file}, the secret of cassandra.password_file, can be read by others (mode {mode:o}); run chmod 600 {file}"
    )


def test_a_secret_in_a_settings_file_that_others_can_read_is_refused(
    empty_place: Path, refusal: Callable[..., str]
) -> None:
    with_user(empty_place, f'password = "{SECRET}"')
    assert refusal() == (
        "freshrec.toml, the secret of cassandra.password, can be read by others (mode 644); run chmod 600 freshrec.toml"
    )
    (empty_place / "freshrec.toml").chmod(0o600)
    assert load_settings(Settings).cassandra.secret() == SECRET


def test_a_secret_that_is_missing_empty_or_given_twice(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    with_user(empty_place, 'password_file = "secret"')
    file = empty_place / "secret"
    assert refusal().startswith(f"cassandra.password_file names {file}, which cannot be read (")
    file.touch(0o600)
    assert refusal() == f"cassandra.password_file names {file}, which is empty; write the secret into it"
    monkeypatch.setenv("FRESHREC_CASSANDRA__PASSWORD", SECRET)
    line = refusal()
    assert "password and password_file are both given; keep one of them" in line
    assert SECRET not in line


def test_a_secret_of_a_wrong_type_is_not_repeated(empty_place: Path, refusal: Callable[..., str]) -> None:
    with_user(empty_place, "password = 12345")
    assert refusal() == "cassandra.password = a secret in freshrec.toml: Input should be a valid string; correct it"


def test_what_is_asked_for_is_checked_like_a_setting(refusal: Callable[..., str]) -> None:
    assert refusal("replay") == "replay of what is not said; add --dead-letters"
    assert refusal("replay", "--dead-letters", "--since", "yesterday") == (
        "--since yesterday is no time; write it as 2026-11-24T08:00"
    )
    assert refusal("lookup", "user\n1") == "user 'user\\n1' has control characters; name one as events do"
    assert refusal("inspect", "x" * 300).startswith("user 'xxx")
