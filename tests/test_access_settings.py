"""Settings on who may call: keys are never shown, lists are separated by commas."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.configuration import BadSetting, read_flags, read_settings

KEY = "a-secret-key-5e1f"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no `.env` of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("EMBEDDING_"):
            monkeypatch.delenv(name)


def test_by_default_anybody_may_call_and_no_other_origin() -> None:
    settings = read_settings()
    assert settings.api_keys == []
    assert settings.allowed_origins == []
    assert settings.token_ids == "reject"
    assert settings.access_log is True


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (KEY, [KEY]),
        (f"{KEY},other", [KEY, "other"]),
        (f" {KEY} , other ,", [KEY, "other"]),
        ("!#$%&'()*+-./:;<=>?@[]^_`{|}~", ["!#$%&'()*+-./:;<=>?@[]^_`{|}~"]),
    ],
)
def test_keys_are_separated_by_commas(
    value: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_API_KEY", value)
    assert read_settings().api_keys == keys


BAD_KEYS = [
    f"{KEY} {KEY}",
    f"{KEY},with space inside",
    f"caf\u00e9-{KEY}",
    f"天-{KEY}",
    f"{KEY}\x7f",
    f"{KEY}\nother",
]


@pytest.mark.parametrize("value", BAD_KEYS)
def test_a_bad_key_is_refused_by_name_and_not_shown(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(read: Any) -> str:
        with pytest.raises(BadSetting) as refused:
            read()
        return str(refused.value)

    texts = [refusal(lambda: read_flags(["--api-key", value]))]
    texts.append(refusal(lambda: read_settings(api_key=value)))
    monkeypatch.setenv("EMBEDDING_API_KEY", value)
    texts.append(refusal(read_settings))
    monkeypatch.setenv("EMBEDDING_PORT", "http")  # beside another that is at fault
    texts.append(refusal(read_settings))
    for text in texts:
        assert "EMBEDDING_API_KEY: keys are printable ASCII without spaces" in text
        assert KEY not in text
        assert "got 'http'" in text or "got" not in text


@pytest.mark.parametrize("value", [",", " , ,", ",,,"])
def test_a_list_without_a_key_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody meant to set one: the server must not stay open."""
    monkeypatch.setenv("EMBEDDING_API_KEY", value)
    with pytest.raises(BadSetting, match=r"^EMBEDDING_API_KEY: "):
        read_settings()


@given(value=st.text(min_size=1, max_size=20))
def test_any_key_is_read_whole_or_refused(value: str) -> None:
    try:
        keys = read_settings(api_key=value, _env_file=None).api_keys
    except BadSetting:
        return
    assert keys
    assert keys == [part.strip() for part in value.split(",") if part.strip()]
    assert all(key.isascii() and key.isprintable() and " " not in key for key in keys)


def test_a_key_is_in_no_text_of_the_settings() -> None:
    for settings in (read_settings(api_key=KEY), read_flags(["--api-key", KEY])):
        assert settings.api_keys == [KEY]
        for text in (repr(settings), str(settings), str(settings.model_dump())):
            assert KEY not in text
        assert KEY not in settings.model_dump_json()


def test_a_key_by_flag_reaches_the_server_as_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--api-key", f"{KEY},b", "--cors-origins", "https://a.example, http://b:3000"]
    more = ["--no-access-log", "--token-ids", "Accept"]
    variables = read_flags([*flags, *more]).as_environment()
    assert variables == {
        "EMBEDDING_API_KEY": f"{KEY},b",
        "EMBEDDING_CORS_ORIGINS": "https://a.example, http://b:3000",
        "EMBEDDING_ACCESS_LOG": "False",
        "EMBEDDING_TOKEN_IDS": "accept",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.api_keys == [KEY, "b"]
    assert settings.allowed_origins == ["https://a.example", "http://b:3000"]
    assert (settings.access_log, settings.token_ids) == (False, "accept")


def test_a_key_in_dotenv_is_read(tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_text(f"EMBEDDING_API_KEY='{KEY}, b'\n")
    assert read_settings().api_keys == [KEY, "b"]
    tmp_path.joinpath(".env").write_text(f"EMBEDDING_API_KEY='{KEY} b'\n")
    with pytest.raises(BadSetting, match=r"^EMBEDDING_API_KEY: ") as refused:
        read_settings()
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("*", ["*"]),
        ("https://a.example", ["https://a.example"]),
        (" https://a.example ,http://b:3000, ", ["https://a.example", "http://b:3000"]),
        (" , ", []),
    ],
)
def test_origins_are_separated_by_commas(
    value: str, origins: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_CORS_ORIGINS", value)
    assert read_settings().allowed_origins == origins
