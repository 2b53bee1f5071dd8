"""The page at `/` against a real server: the heat map and the ranking, as a person gets them."""

from __future__ import annotations

import re

import numpy as np
from playwright.sync_api import Route, expect

from tests.browser.tabs import TEXTS, OpenTab, cells, compare, rank
from tests.servers import Server

MARKUP = "<img src=x onerror=\"document.title='hacked'\"> & <b>bold</b>"


def test_heat_map_shows_the_cosines_of_the_vectors(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    page = open_tab(stand_in_server.url).page
    compare(page, TEXTS)
    shown = cells(page)
    answer = stand_in_server.embed({"input": TEXTS}).json()
    rows = np.array(answer["embeddings"])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = rows @ rows.T
    assert np.abs(np.array(shown, float) - wanted).max() < 0.00501
    assert [shown[i][i] for i in range(3)] == ["1.00"] * 3
    assert all(re.fullmatch(r"-?[01]\.\d\d", value) for row in shown for value in row)
    facts = page.locator("#compare-result .facts")
    wanted_facts = ["all-MiniLM-L6-v2", "384 dimensions", f"{answer['prompt_eval_count']} tokens"]
    *shown_facts, ms = facts.inner_text().replace("\u00a0", " ").split(" · ")
    assert shown_facts == wanted_facts
    assert re.fullmatch(r"[\d.,]+ ms", ms)


def test_heat_map_is_a_table_that_a_screen_reader_can_read(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    page = open_tab(stand_in_server.url).page
    compare(page, TEXTS)
    expect(page.get_by_role("table", name=re.compile("^Cosine similarity"))).to_be_visible()
    assert page.get_by_role("columnheader").all_inner_texts() == ["1", "2", "3"]
    names = page.get_by_role("rowheader").all_inner_texts()
    assert [re.sub(r"^\d\s*", "", name) for name in names] == TEXTS


def test_the_page_starts_with_samples_that_both_boxes_can_use(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    page = open_tab(stand_in_server.url).page
    for name in ("Compare", "Rank"):
        page.get_by_role("button", name=name).click()
    assert len(cells(page)) == 3
    expect(page.locator(".ranking li").first).to_contain_text("Giant pandas live")


def test_documents_are_ordered_by_their_cosine_to_the_query(
    stand_in_server: Server, open_tab: OpenTab
) -> None:
    page = open_tab(stand_in_server.url).page
    query, documents = TEXTS[2], ["Bread needs yeast.", TEXTS[0], TEXTS[1]]
    rank(page, query, documents)
    expect(page.locator(".ranking li")).to_have_count(3)
    rows = np.array(stand_in_server.embed({"input": [query, *documents]}).json()["embeddings"])
    scores = rows[1:] @ rows[0]
    order = [int(i) for i in np.argsort(-scores)]
    shown = page.locator(".ranking .document").all_inner_texts()
    assert shown == [documents[i] for i in order]
    numbers = np.array(page.locator(".ranking .score").all_inner_texts(), float)
    assert np.abs(numbers - scores[order]).max() < 0.00051


def test_users_texts_never_become_markup(stand_in_server: Server, open_tab: OpenTab) -> None:
    page = open_tab(stand_in_server.url).page
    compare(page, [MARKUP, "plain"])
    rank(page, MARKUP, [MARKUP, "plain"])
    expect(page.locator(".heat .text").first).to_have_text(MARKUP)
    expect(page.locator(".ranking .document").first).to_have_text(MARKUP)
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "Embedding server"


def test_a_model_that_is_chosen_answers(stand_in_server: Server, open_tab: OpenTab) -> None:
    page = open_tab(stand_in_server.url).page
    expect(page.locator("#compare-model option")).to_have_count(2)
    page.locator("#compare-model").select_option("all-MiniLM-L6-v2")
    with page.expect_request("**/api/embed") as sent:
        compare(page, TEXTS)
    body = sent.value.post_data_json
    assert body == {"model": "all-MiniLM-L6-v2:latest", "input": TEXTS}
    assert len(cells(page)) == 3


def test_a_button_is_off_while_its_request_runs(stand_in_server: Server, open_tab: OpenTab) -> None:
    page = open_tab(stand_in_server.url).page
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/api/embed", hold)
    button = page.get_by_role("button", name="Compare")
    with page.expect_request("**/api/embed"):
        button.click()
    expect(button).to_be_disabled()
    [route] = held
    route.continue_()
    expect(button).to_be_enabled()
    assert len(cells(page)) == 3
