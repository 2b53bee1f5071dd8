"""A page in the browser, what went wrong in it, and what a person does in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from playwright.sync_api import Locator, Page, expect

DESKTOP, PHONE = (1280, 900), (390, 844)

TEXTS = ["The sky is blue.", "一只猫正在沙发上睡觉。", "What colour is the sky?"]


@dataclass(slots=True)
class Tab:
    """A page, and all that went wrong in it."""

    page: Page
    outside: list[str] = field(default_factory=list)  # requests to other hosts; all were refused
    complaints: list[str] = field(default_factory=list)  # console errors and uncaught exceptions

    def expect_status(self, status: int) -> None:
        """The browser logs every answer that is an error; here it is what the test is about."""
        told = f"the server responded with a status of {status}"
        assert any(told in complaint for complaint in self.complaints), self.complaints
        self.complaints = [complaint for complaint in self.complaints if told not in complaint]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return width


OpenTab = Callable[..., Tab]


def compare(page: Page, texts: list[str]) -> None:
    page.get_by_label("Texts, one a line").fill("\n".join(texts))
    page.get_by_role("button", name="Compare").click()


def rank(page: Page, query: str, documents: list[str]) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Documents, one a line").fill("\n".join(documents))
    page.get_by_role("button", name="Rank").click()


def cells(page: Page) -> list[list[str]]:
    rows = page.locator(".heat tbody tr")
    expect(rows.first).to_be_visible()
    return [row.locator("td").all_inner_texts() for row in rows.all()]


def alert_of(page: Page, form: str) -> Locator:
    return page.locator(f"#{form}").get_by_role("alert")
