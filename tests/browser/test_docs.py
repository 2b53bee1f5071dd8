"""/docs in a real browser: drawn without network, and its Try it out calls the server."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from tests.browser.tabs import OpenTab
from tests.servers import Server


def test_try_it_out_embeds_and_shows_the_vectors(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    page = open_tab(f"{stand_in_server.url}/docs").page
    route = page.locator(".opblock-post", has=page.locator('[data-path="/api/embed"]'))
    route.locator(".opblock-summary-control").click()
    route.get_by_role("button", name="Try it out").click()
    route.locator("textarea").fill(json.dumps({"input": ["hello", "世界"]}))
    route.get_by_role("button", name="Execute").click()
    answer = route.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200")
    expect(answer).to_contain_text('"embeddings"')
    expect(answer).to_contain_text('"prompt_eval_count"')


def test_docs_lists_the_routes(stand_in_server: Server, open_tab: OpenTab) -> None:
    page = open_tab(f"{stand_in_server.url}/docs").page
    for path in ("/api/embed", "/rerank", "/health"):
        expect(page.locator(f'[data-path="{path}"]').first).to_be_visible()
