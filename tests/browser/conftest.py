"""A real browser, without network: whatever it asks of another host is refused and recorded.

The browser is a program of the system, never a download. If it is missing, these tests fail and
say how to get it: a skip would hide that nobody looks at the page.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Route,
    expect,
    sync_playwright,
)

from tests.browser.tabs import DESKTOP, PHONE, OpenTab, Tab

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_TIMEOUT_MS = 30_000


def find_browser() -> str:
    """The browser that CHROMIUM names, else one on the PATH. AssertionError when there is none."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else list(_NAMES)
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, (
        f"no browser: none of {', '.join(names)} is a program here; on Debian:"
        " apt-get install chromium, or name one with CHROMIUM=/path/to/it"
    )
    return found


# Not for the session: playwright's event loop counts as running in this thread as long as it lives,
# and other folders' tests call asyncio.run.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = find_browser()
    with sync_playwright() as playwright:
        expect.set_options(timeout=_TIMEOUT_MS)
        launched = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Opens a URL; at the end no tab may have asked another host or complained."""
    tabs: list[Tab] = []
    contexts: list[BrowserContext] = []

    def open_url(url: str, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Tab:
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            is_mobile=size == PHONE,
            has_touch=size == PHONE,
        )
        contexts.append(context)
        context.set_default_timeout(_TIMEOUT_MS)
        tab = Tab(context.new_page())
        tabs.append(tab)
        _watch(context, tab, urlsplit(url).netloc)
        tab.page.goto(url)
        return tab

    yield open_url
    for context in contexts:
        context.close()
    assert [tab.outside for tab in tabs if tab.outside] == []
    assert [tab.complaints for tab in tabs if tab.complaints] == []


def _watch(context: BrowserContext, tab: Tab, own_host: str) -> None:
    def refuse_others(route: Route) -> None:
        if urlsplit(route.request.url).netloc == own_host:
            route.continue_()
            return
        tab.outside.append(route.request.url)
        route.abort()

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            tab.complaints.append(message.text)

    context.route("**/*", refuse_others)
    tab.page.on("console", note)
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
