"""Settings: what is accepted, what is refused by name, and which source wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from serving.configuration import BadSetting, odd_variables, read_flags, read_settings
from settings import ServeFlags, Settings


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no `.env` of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("EMBEDDING_"):
            monkeypatch.delenv(name)


BAD = [
    ("DTYPE", "float8"),
    ("LAYOUT", "ragged"),
    ("LINEAR", "fast"),
    ("POOLING", "none"),
    ("POOLING", "cls+mean"),
    ("MAX_LENGTH", "2"),
    ("MAX_LENGTH", "-1"),
    ("MAX_LENGTH", "auto"),
    ("MAX_LENGTH", "512.5"),
    ("PROMPTS", "{"),
    ("PROMPTS", "query"),
    ("KEEP_ALIVE", "soon"),
    ("KEEP_ALIVE", "5 m"),
    ("KEEP_ALIVE", "1e400"),
    ("MAX_MODEL_BYTES", "0"),
    ("MAX_MODEL_BYTES", "-1"),
    ("MAX_MODEL_BYTES", "8 elephants"),
    ("LOAD_TIMEOUT_S", "0"),
    ("LOAD_TIMEOUT_S", "86401"),
    ("LOAD_TIMEOUT_S", "nan"),
    ("MAX_COLBERT_TOKENS", "0"),
    ("MAX_BATCH_TOKENS", "0"),
    ("MAX_BATCH_TOKENS", "1048577"),
    ("MAX_BATCH_TOKENS", "1e3"),
    ("PREEMPTION", "maybe"),
    ("MAX_URGENT_TOKENS", "0"),
    ("CORS_ORIGINS", "example.com"),
    ("CORS_ORIGINS", "https://example.com/"),
    ("CORS_ORIGINS", "https://a.example,b.example"),
    ("THREADS", "0"),
    ("THREADS", "-2"),
    ("THREADS", "1025"),
    ("THREADS", "1.5"),
    ("THREADS", "many"),
    ("THREADS", "²"),
    ("MAX_INPUTS", "0"),
    ("MAX_QUEUE_TOKENS", "0"),
    ("MAX_QUEUE_TOKENS", "2M"),
    ("MAX_QUEUE_REQUESTS", "0"),
    ("MAX_QUEUE_REQUESTS", "-1"),
    ("REQUEST_TIMEOUT_S", "0"),
    ("REQUEST_TIMEOUT_S", "86401"),
    ("REQUEST_TIMEOUT_S", "nan"),
    ("REQUEST_TIMEOUT_S", "30s"),
    ("MAX_BODY_BYTES", "1023"),
    ("MAX_BODY_BYTES", "64MB"),
    ("DRAIN_TIMEOUT_S", "-0.1"),
    ("DRAIN_TIMEOUT_S", "3601"),
    ("DRAIN_TIMEOUT_S", "nan"),
    ("DRAIN_TIMEOUT_S", "inf"),
    ("DRAIN_TIMEOUT_S", "30s"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "http"),
    ("LOG_LEVEL", "loud"),
    ("LOG_FORMAT", "xml"),
    ("TOKEN_IDS", "maybe"),
    ("ACCESS_LOG", "loud"),
    ("ACCESS_LOG", "2"),
]

GOOD: list[tuple[str, str, Any]] = [
    ("MODELS_DIR", "/srv/models", Path("/srv/models")),
    ("MODEL", "BGE-M3", "BGE-M3"),
    ("DEVICE", "CUDA:1", "cuda:1"),
    ("DTYPE", " BFloat16 ", "bfloat16"),
    ("LAYOUT", "Packed", "unpadded"),
    ("LINEAR", "PLAIN", "plain"),
    ("POOLING", "CLS", "cls"),
    ("POOLING", "weighted_mean", "weighted_mean"),
    ("MAX_LENGTH", "3", 3),
    ("PROMPTS", '{"query": "q: ", "none": ""}', {"query": "q: ", "none": ""}),
    ("KEEP_ALIVE", "0", 0.0),
    ("KEEP_ALIVE", "90", 90.0),
    ("KEEP_ALIVE", "-1", -1.0),
    ("KEEP_ALIVE", " 1h30m ", 5400.0),
    ("KEEP_ALIVE", "-1s", -1.0),
    ("MAX_MODEL_BYTES", "8GB", 8 * 10**9),
    ("MAX_MODEL_BYTES", "1.5 GiB", 3 << 29),
    ("MAX_MODEL_BYTES", "1000", 1000),
    ("LOAD_TIMEOUT_S", "0.5", 0.5),
    ("MAX_COLBERT_TOKENS", "1", 1),
    ("MAX_QUEUE_TOKENS", "1", 1),
    ("MAX_QUEUE_REQUESTS", "1", 1),
    ("REQUEST_TIMEOUT_S", "0.5", 0.5),
    ("REQUEST_TIMEOUT_S", "86400", 86400.0),
    ("MAX_BATCH_TOKENS", "1", 1),
    ("MAX_BATCH_TOKENS", "1048576", 1 << 20),
    ("THREADS", "AUTO", "auto"),
    ("THREADS", "1", 1),
    ("THREADS", " 1024 ", 1024),
    ("DRAIN_TIMEOUT_S", "0", 0.0),
    ("DRAIN_TIMEOUT_S", "2.5", 2.5),
    ("PORT", "0", 0),
    ("PORT", "65535", 65535),
    ("LOG_LEVEL", "DEBUG", "debug"),
    ("LOG_FORMAT", "Json", "json"),
    ("TOKEN_IDS", " Accept ", "accept"),
    ("ACCESS_LOG", "false", False),
    ("ACCESS_LOG", "1", True),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name_and_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"EMBEDDING_{name}", value)
    with pytest.raises(BadSetting) as refusal:
        read_settings()
    text = str(refusal.value)
    assert text.startswith(f"EMBEDDING_{name}: ")
    assert text.endswith(f"(got {value!r})")
    assert "\n" not in text


def test_a_bad_flag_is_refused_by_its_variable() -> None:
    with pytest.raises(BadSetting, match=r"^EMBEDDING_MAX_BATCH_TOKENS: .*\(got '0'\)$"):
        read_flags(["--max-step-tokens", "0"])


def test_every_bad_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_PORT", "70000")
    monkeypatch.setenv("EMBEDDING_THREADS", "many")
    with pytest.raises(BadSetting, match=r"EMBEDDING_THREADS: .*; EMBEDDING_PORT: "):
        read_settings()


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_a_good_value_is_read(
    name: str, value: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"EMBEDDING_{name}", value)
    read = getattr(read_settings(), name.lower())
    assert read == expected
    assert isinstance(read, type(expected))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_keep_alive_is_a_finite_time(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_KEEP_ALIVE", value)
    with pytest.raises(BadSetting, match=r"^EMBEDDING_KEEP_ALIVE: must be seconds or a duration"):
        read_settings()


@pytest.mark.parametrize("value", ["[]", '["query"]', '"query"', "5", '{"query": 5}'])
def test_prompts_are_texts_by_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_PROMPTS", value)
    with pytest.raises(BadSetting, match=r"^EMBEDDING_PROMPTS: "):
        read_settings()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        (" , ,", []),
        ("bge-m3", ["bge-m3"]),
        (" bge-m3 , a/b,bge-m3 ", ["bge-m3", "a/b", "bge-m3"]),
    ],
)
def test_several_models_are_separated_by_commas(
    value: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_MODEL", value)
    assert read_settings().models == names


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_an_empty_variable_is_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EMBEDDING_{name.upper()}", "")
    assert read_settings() == Settings.model_construct()


def test_dotenv_is_read_below_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath(".env").write_text(
        "# a comment\nEMBEDDING_PORT=9001\nEMBEDDING_MODEL='bge-m3'\nPORT=1\nUNRELATED=x\n"
    )
    assert (read_settings().port, read_settings().model) == (9001, "bge-m3")
    monkeypatch.setenv("EMBEDDING_PORT", "9002")
    assert (read_settings().port, read_settings().model) == (9002, "bge-m3")


def test_a_bad_value_in_dotenv_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_text("EMBEDDING_PORT=http\n")
    with pytest.raises(BadSetting, match=r"^EMBEDDING_PORT: .*\(got 'http'\)$"):
        read_settings()


@pytest.mark.parametrize("read", [read_settings, lambda: read_flags([])])
def test_a_dotenv_that_is_no_text_is_refused(read: Any, tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_bytes("EMBEDDING_MODEL=café".encode("latin-1"))
    with pytest.raises(BadSetting, match=r"\.env is not UTF-8"):
        read()


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_PORT", "9001")
    monkeypatch.setenv("EMBEDDING_HOST", "127.0.0.1")
    flags = read_flags(["--port", "9002", "--log-level", "DEBUG"])
    assert (flags.port, flags.host, flags.log_level) == (9002, "127.0.0.1", "debug")


@pytest.mark.parametrize(
    "arguments", [["--porte", "1"], ["--port"], ["--mode", "bge-m3"], ["bge-m3"]], ids=" ".join
)
def test_an_unknown_flag_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        read_flags(arguments)
    assert exit_.value.code == 2
    assert "embedding serve: error: " in capsys.readouterr().err


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        read_flags(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out.split("options:")[1]
    for name in ServeFlags.model_fields:
        assert f"--{name.replace('_', '-')}" in printed


@pytest.mark.parametrize("name", sorted(ServeFlags.model_fields))
def test_every_setting_says_what_it_is(name: str) -> None:
    assert ServeFlags.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("EMBEDDING_PROT", "EMBEDDING_PROT is no setting and is ignored; did you mean {PORT}?"),
        ("EMBEDDING_MODELDIR", "did you mean {MODELS_DIR}?"),
        ("embedding_thread", "embedding_thread is no setting and is ignored; did you mean"),
        ("EMBEDDING_QQQQQQQQQQQQQ", "EMBEDDING_QQQQQQQQQQQQQ is no setting and is ignored"),
    ],
)
def test_an_unknown_variable_is_hinted_at(name: str, hint: str) -> None:
    hint = hint.replace("{", "EMBEDDING_").replace("}", "")
    (line,) = odd_variables({name: "1", "EMBEDDING_PORT": "1", "PATH": "/bin"})
    assert hint in line


def test_known_and_foreign_variables_are_not_hinted_at() -> None:
    known = {f"EMBEDDING_{name.upper()}": "1" for name in Settings.model_fields}
    assert odd_variables({**known, "embedding_port": "1", "EMBED_PORT": "1"}) == []


def test_flags_reach_another_process_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_DRAIN_TIMEOUT_S", "2.5")
    given = "--models-dir a/b --model bge-m3,b --threads 3 --pooling CLS --max-length 8 --reload"
    more = ["--prompts", '{"query": "q: "}', "--keep-alive", "-1", "--max-model-bytes", "8GB"]
    flags = read_flags([*given.split(), *more])
    assert flags.reload
    variables = flags.as_environment()
    assert variables == {
        "EMBEDDING_MODELS_DIR": "a/b",
        "EMBEDDING_MODEL": "bge-m3,b",
        "EMBEDDING_PROMPTS": '{"query": "q: "}',
        "EMBEDDING_KEEP_ALIVE": "-1.0",
        "EMBEDDING_MAX_MODEL_BYTES": "8000000000",
        "EMBEDDING_THREADS": "3",
        "EMBEDDING_POOLING": "cls",
        "EMBEDDING_MAX_LENGTH": "8",
        "EMBEDDING_DRAIN_TIMEOUT_S": "2.5",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_settings().model_dump() == flags.model_dump(exclude={"reload"})


def test_nothing_given_is_nothing_passed_on() -> None:
    assert read_flags([]).as_environment() == {}
