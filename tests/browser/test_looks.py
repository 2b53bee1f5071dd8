"""The page at `/` on a phone, in the dark, by keyboard: readable, within reach, never too wide."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.tabs import PHONE, TEXTS, OpenTab, cells, compare
from tests.servers import Server


def contrasts(page: Page) -> list[float]:
    """WCAG contrast of each cell's ink on its shade, mixed by the browser itself."""
    ratios: list[float] = page.evaluate(
        """() => {
          const luminance = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).map(Number)
              .map((c) => color.startsWith("color(") ? c : c / 255)
              .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
          };
          return [...document.querySelectorAll(".heat tbody td")].map((cell) => {
            const style = getComputedStyle(cell);
            const pair = [luminance(style.color), luminance(style.backgroundColor)];
            return Math.max(...pair) / Math.min(...pair);
          });
        }"""
    )
    return ratios


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_are_readable_on_every_shade(
    stand_in_server: Server, open_tab: OpenTab, scheme: str
) -> None:
    page = open_tab(stand_in_server.url, scheme=scheme).page
    compare(page, TEXTS)
    assert len(cells(page)) == 3
    page.evaluate(  # all shades, warm ones too
        """() => document.querySelectorAll(".heat tbody td").forEach((cell, i) => {
          cell.style.setProperty("--strength", `${(i % 5) * 25}%`);
          cell.classList.toggle("negative", i >= 5);
        })"""
    )
    assert min(contrasts(page)) >= 4.5


def test_on_a_phone_nothing_overflows_and_the_boxes_work(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    tab = open_tab(stand_in_server.url, PHONE)
    page = tab.page
    assert tab.overflow() <= 0
    many = [*TEXTS, "a" * 300, *(f"text number {i}" for i in range(8))]
    page.get_by_label("Texts, one a line").fill("\n".join(many))
    page.get_by_role("button", name="Compare").tap()
    assert len(cells(page)) == len(many)
    page.get_by_label("Documents, one a line").fill("\n".join(many))
    page.get_by_role("button", name="Rank").tap()
    expect(page.locator(".ranking li")).to_have_count(len(many))
    page.get_by_text("API key", exact=True).first.tap()
    assert tab.overflow() <= 0
    for box in page.locator("textarea, #query, select, button, #key").all():
        area = box.bounding_box()
        assert area is not None
        assert area["height"] >= 44, "a finger needs room"
        assert area["x"] >= 0
        assert area["x"] + area["width"] <= PHONE[0]


def test_the_keyboard_reaches_and_sends_everything(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    page = open_tab(stand_in_server.url).page
    focused, reached = "document.activeElement", []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"{focused}.id || {focused}.innerText"))
        outline = page.evaluate(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none"
    wanted = ["texts", "compare-model", "Compare", "query", "documents", "rank-model", "Rank"]
    assert reached == wanted
    page.get_by_label("Texts, one a line").press("Control+Enter")
    assert len(cells(page)) == 3
