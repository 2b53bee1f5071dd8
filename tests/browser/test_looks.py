"""The page at `/` on a phone, in the dark, by keyboard: readable, within reach, never too wide."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.tabs import DESKTOP, PHONE, TEXTS, OpenTab, cells, compare, rank
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


def colors(page: Page, picture: bytes) -> tuple[int, int, int, float]:
    """Width, height, how many colours, and how much of it is the most frequent one: the browser
    itself decodes the picture."""
    found: tuple[int, int, int, float] = page.evaluate(
        """async (text) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
          const { width, height } = picture;
          const context = new OffscreenCanvas(width, height).getContext("2d");
          context.drawImage(picture, 0, 0);
          const counts = new Map();
          for (const pixel of new Uint32Array(
            context.getImageData(0, 0, width, height).data.buffer)) {
            counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
          }
          return [width, height, counts.size, Math.max(...counts.values()) / (width * height)];
        }""",
        base64.b64encode(picture).decode(),
    )
    return found


def test_a_blank_picture_is_seen_as_one(stand_in_server: Server, open_tab: OpenTab) -> None:
    page = open_tab(stand_in_server.url).page
    page.evaluate("document.body.hidden = true")
    _, _, num_colors, share = colors(page, page.screenshot())
    assert num_colors <= 2
    assert share > 0.99


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_heat_map_and_ranking_are_seen_whole_at_every_width(
    stand_in_server: Server,
    open_tab: OpenTab,
    tmp_path: Path,
    size: tuple[int, int],
    scheme: str,
) -> None:
    tab = open_tab(stand_in_server.url, size, scheme)
    page, (width, height) = tab.page, size
    empty = page.screenshot(path=tmp_path / "empty.png")
    compare(page, TEXTS)
    assert len(cells(page)) == len(TEXTS)
    rank(page, TEXTS[2], TEXTS)
    expect(page.locator(".ranking li")).to_have_count(len(TEXTS))
    assert tab.overflow() <= 0
    for name in (".heat", ".ranking"):
        shown = page.locator(name)
        shown.scroll_into_view_if_needed()
        box = shown.bounding_box()
        assert box is not None
        assert box["width"] > 0.5 * min(width, 600), name
        assert box["height"] > 60, name
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name
    assert tab.overflow() <= 0
    window = page.screenshot(path=tmp_path / "window.png")
    whole = page.screenshot(path=tmp_path / "whole.png", full_page=True)
    assert (tmp_path / "window.png").read_bytes() == window != empty
    for picture in (window, whole):
        wide, high, num_colors, share = colors(page, picture)
        assert wide == width
        assert high == height if picture is window else high >= height
        assert num_colors > 50
        assert share < 0.95
