"""GET /: the page for people or the text for clients; its files, and what they must not contain."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import page
from tests.servers import ROOT
from tests.serving.fake_engine import FakeServer, serve_fake

FILES = sorted(path.name for path in Path(page.__file__).with_name("page_files").iterdir())
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with serve_fake() as running:
        yield running


@pytest.mark.parametrize("accept", [CHROME, "text/html", "a/b, TEXT/HTML;level=1;q=0.1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_accepts_html_gets_the_page(server: FakeServer, method: str, accept: str) -> None:
    with server.client() as client:
        answer = client.request(method, "/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.text.startswith("<!doctype html>" if method == "GET" else "")


@pytest.mark.parametrize(
    "accept",
    ["*/*", "", "text/*", "application/json", "text/html;q=0", "text/html; q=0.0", "text/html;q=x"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_everybody_else_gets_the_text_of_ollama(
    server: FakeServer, method: str, accept: str
) -> None:
    with server.client() as client:
        answer = client.request(method, "/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["content-length"] == "17"
    assert answer.text == ("Ollama is running" if method == "GET" else "")


def test_the_page_is_there_while_the_model_loads() -> None:
    with serve_fake(ready=False) as server, server.client() as client:
        assert client.get("/health").status_code == 503
        assert client.get("/", headers={"Accept": CHROME}).status_code == 200
        assert client.get("/page/page.js").status_code == 200
        assert client.get("/").text == "Ollama is running"


@pytest.mark.parametrize(
    ("suffix", "kind"), [("css", "text/css"), ("js", "javascript"), ("svg", "image/svg+xml")]
)
def test_files_have_their_type_and_are_not_sent_twice(
    server: FakeServer, suffix: str, kind: str
) -> None:
    names = [name for name in FILES if name.endswith(f".{suffix}")]
    assert names
    with server.client() as client:
        for name in names:
            answer = client.get(f"/page/{name}")
            assert answer.status_code == 200
            assert kind in answer.headers["content-type"]
            assert answer.headers["cache-control"] == "no-cache"
            known = {"If-None-Match": answer.headers["etag"]}
            assert client.get(f"/page/{name}", headers=known).status_code == 304


@pytest.mark.parametrize("name", ["absent.js", "..%2fpage.py", "%2e%2e/page.py", "", "a/b.js"])
def test_what_is_no_file_of_the_page_is_404(server: FakeServer, name: str) -> None:
    assert server.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_page_files_name_no_other_host_and_make_no_markup(name: str) -> None:
    text = Path(page.__file__).with_name("page_files").joinpath(name).read_text("utf-8")
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"https?:|url\(|@import|[\"'(=]//", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert len(text.splitlines()) <= 250


def test_the_package_carries_the_pages_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    read_toml = importlib.import_module("image_requirements").read_toml
    data = read_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-data"]
    assert data == {"api": ["page_files/*"]}
