"""The page at `/`: the server's state and models, and what it says when something is wrong."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Route, expect

from tests.browser.tabs import OpenTab, alert_of, cells
from tests.servers import Server
from tests.serving.fake_engine import serve_fake


def test_the_server_and_its_models_are_shown(stand_in_server: Server, open_tab: OpenTab) -> None:
    page = open_tab(stand_in_server.url).page
    expect(page.locator("#state")).to_have_text("ready · all-MiniLM-L6-v2")
    expect(page.locator("#notice")).to_contain_text("this small one stands in for yours")
    expect(page.locator("#waiting-jobs")).to_have_text("0")
    expect(page.locator("#waiting-tokens")).to_have_text("0")
    expect(page.locator("#models li")).to_have_count(1)
    [model] = page.locator("#models li").all()
    expect(model).to_contain_text("all-MiniLM-L6-v2")
    expect(model).to_contain_text(re.compile(r"\d+\sMB\sin\smemory\s· stays"))


def test_figures_follow_the_server_and_are_dashes_while_it_does_not_tell(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    def tell(**figures: int) -> None:
        """Answer the next poll; the one after it waits for its own answer."""
        for _ in range(1500):  # the route's handler runs while playwright waits
            if held:
                break
            page.wait_for_timeout(20)
        held.pop().fulfill(json={"status": "ok", "model": "m", **figures})

    def shown(*names: str) -> list[str]:
        return [page.locator(f"#{name}").inner_text() for name in names]

    page = open_tab(f"{stand_in_server.url}/docs").page  # which asks for no state
    page.route("**/health", hold)
    page.goto(stand_in_server.url)
    tell(waiting_jobs=3, waiting_tokens=1234)
    expect(page.locator("#waiting-tokens")).to_have_text("1,234")
    assert shown("waiting-jobs", "rate", "requests") == ["3", "–", "–"]
    tell(computed_tokens=500, requests=7)
    expect(page.locator("#requests")).to_have_text("7")
    assert shown("waiting-jobs", "rate") == ["–", "–"]
    tell(computed_tokens=50_500, requests=1007)
    expect(page.locator("#requests")).to_have_text("1,007")
    rate = float(shown("rate")[0].replace(",", ""))
    assert 0 < rate < 50_000 / 1.9  # two seconds between polls, more on a busy machine
    tell()
    expect(page.locator("#rate")).to_have_text("–")


def test_a_server_that_starts_says_so_with_its_reason(
    open_tab: OpenTab,
) -> None:
    with serve_fake(ready=False) as server:
        server.say_it_is("loading Fake-Model")
        tab = open_tab(server.url)
        expect(tab.page.locator("#state")).to_have_text("starting")
        expect(tab.page.locator("#notice")).to_have_text("Loading Fake-Model")
        tab.page.get_by_role("button", name="Compare").click()
        expect(alert_of(tab.page, "compare")).to_contain_text("Loading Fake-Model")
        tab.page.close()  # no further poll
        tab.expect_status(503)


@pytest.mark.parametrize(
    ("form", "button", "emptied", "message"),
    [
        ("compare", "Compare", "Texts, one a line", "Write at least two texts, one a line."),
        ("rank", "Rank", "Query", "Write a query."),
        ("rank", "Rank", "Documents, one a line", "Write at least one document, one a line."),
    ],
)
def test_an_empty_box_says_what_it_wants(
    stand_in_server: Server,
    open_tab: OpenTab,
    form: str,
    button: str,
    emptied: str,
    message: str,
) -> None:
    page = open_tab(stand_in_server.url).page
    page.get_by_label(emptied).fill(" \n ")
    page.get_by_role("button", name=button).click()
    expect(alert_of(page, form)).to_have_text(message)
    expect(page.get_by_role("button", name=button)).to_be_enabled()


def test_an_error_is_shown_in_the_servers_words_and_leaves_with_the_next_answer(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    def add_model(route: Route) -> None:  # one that has gone when somebody chooses it
        listed = route.fetch().json()
        listed["models"].append({**listed["models"][0], "name": "gone:latest"})
        route.fulfill(json=listed)

    tab = open_tab(f"{stand_in_server.url}/docs")
    page = tab.page
    page.route("**/api/tags", add_model)
    page.goto(stand_in_server.url)
    for name in ("compare", "rank"):
        page.locator(f"#{name}-model").select_option("gone")
        page.locator(f"#{name} button").click()
        expect(alert_of(page, name)).to_have_text("Model 'gone:latest' not found.")
    page.locator("#compare-model").select_option("")
    page.get_by_role("button", name="Compare").click()
    assert len(cells(page)) == 3
    expect(alert_of(page, "compare")).to_be_empty()
    tab.expect_status(404)


def test_a_key_is_asked_for_sent_and_kept_for_the_tab_alone(open_tab: OpenTab) -> None:
    with serve_fake(api_key="right") as server:
        tab = open_tab(server.url)
        page = tab.page
        expect(page.locator("#state")).to_have_text("ready · Fake-Model")  # open to everybody
        key = page.get_by_role("textbox", name="API key")
        expect(key).to_be_visible()  # the details opened by themselves
        page.get_by_role("button", name="Compare").click()
        expect(alert_of(page, "compare")).to_contain_text("Missing API key")
        key.fill("not right")
        page.get_by_role("button", name="Use").click()
        page.get_by_role("button", name="Compare").click()
        expect(alert_of(page, "compare")).to_contain_text("Wrong API key")
        key.fill("right")
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#models li")).to_have_count(1)
        expect(page.locator("#models-error")).to_be_empty()
        page.get_by_role("button", name="Compare").click()
        assert len(cells(page)) == 3
        page.reload()
        expect(page.locator("#models li")).to_have_count(1)
        assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
        assert page.context.cookies() == []
        page.close()
        tab.expect_status(401)
