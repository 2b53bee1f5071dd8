"""What guards the other tests: a request to another host is refused and recorded, and so are
complaints; a missing browser is named."""

from __future__ import annotations

import pytest

from tests.browser.conftest import find_browser
from tests.browser.tabs import OpenTab
from tests.servers import Server

_FETCH = "url => fetch(url, {mode: 'no-cors'}).then(() => 'answered', () => 'refused')"


def test_a_request_to_another_host_is_refused_and_recorded(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    tab = open_tab(f"{stand_in_server.url}/docs")  # no policy of its own refuses it first
    assert tab.page.evaluate(_FETCH, "http://192.0.2.1/x") == "refused"
    assert tab.page.evaluate(_FETCH, f"{stand_in_server.url}/health") == "answered"
    assert tab.outside == ["http://192.0.2.1/x"]
    assert any("ERR_FAILED" in complaint for complaint in tab.complaints)
    tab.outside.clear()
    tab.complaints.clear()


def test_the_pages_policy_refuses_another_host_by_itself(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    tab = open_tab(stand_in_server.url)
    assert tab.page.evaluate(_FETCH, "http://192.0.2.1/x") == "refused"
    assert tab.outside == []
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)
    tab.complaints.clear()


def test_an_uncaught_exception_is_recorded(stand_in_server: Server, open_tab: OpenTab) -> None:
    tab = open_tab(stand_in_server.url)
    with tab.page.expect_event("pageerror"):
        tab.page.evaluate("setTimeout(() => { throw new Error('broken') })")
    assert tab.complaints == ["broken"]
    tab.complaints.clear()


def test_a_missing_browser_is_named_with_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/absent/browser")
    with pytest.raises(AssertionError, match=r"/absent/browser.*apt-get install chromium"):
        find_browser()
