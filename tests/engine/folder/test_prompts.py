"""Which text goes before an input, for every way of asking and every source of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import BadPrompt, ModelError
from engine.folder.prompts import Prompts, read_prompts
from tests.engine.conftest import Embedders, write_json

FILE = "config_sentence_transformers.json"
QWEN3_QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
BGE_EN = "Represent this sentence for searching relevant passages: "
BGE_ZH = "为这个句子生成表示以用于检索相关文章："
E5 = {"query": "query: ", "passage": "passage: "}
NOMIC = {
    "search_query": "search_query: ",
    "search_document": "search_document: ",
    "classification": "classification: ",
}
JINA = {"retrieval.query": "rq: ", "retrieval.passage": "rp: ", "text-matching": ""}
QUERY_TYPES = ("query", "search_query", "retrieval.query", "QUERY")
DOCUMENT_TYPES = ("document", "passage", "search_document", "retrieval.passage", "Document")


def prompts_of(
    by_name: dict[str, str] | None = None, default: str | None = None, query: str = ""
) -> Prompts:
    return Prompts(by_name or {}, default, query, "")


def read(
    folder: Path,
    stored: Any = None,
    family: str = "bert",
    setting: dict[str, str] | None = None,
) -> Prompts:
    if stored is not None:
        write_json(folder / FILE, stored)
    return read_prompts(folder, family, setting)


def test_a_prompt_is_chosen_by_its_name() -> None:
    prompts = prompts_of(E5)
    assert prompts.choose("query") == "query: "
    assert prompts.choose("passage") == "passage: "
    assert prompts.choose("query", input_type="document") == "query: "


def test_an_unknown_prompt_name_is_refused_with_the_list() -> None:
    with pytest.raises(BadPrompt, match="'title' is unknown; this model has: passage, query"):
        prompts_of(E5).choose("title")
    with pytest.raises(BadPrompt, match="this model has: none"):
        prompts_of().choose("query")


@pytest.mark.parametrize("by_name", [E5, NOMIC, JINA, {"query": "q: ", "document": "d: "}])
@pytest.mark.parametrize(("types", "is_query"), [(QUERY_TYPES, True), (DOCUMENT_TYPES, False)])
def test_every_name_of_a_side_finds_the_models_own(
    by_name: dict[str, str], types: tuple[str, ...], is_query: bool
) -> None:
    wanted = list(by_name.values())[0 if is_query else 1]
    assert {prompts_of(by_name).choose(input_type=kind) for kind in types} == {wanted}


def test_an_input_type_may_be_any_prompt_of_the_model() -> None:
    assert prompts_of(NOMIC).choose(input_type="classification") == "classification: "
    assert prompts_of(JINA).choose(input_type="text-matching") == ""


@pytest.mark.parametrize("kind", ["classification", "clustering", "text", "image"])
def test_a_known_input_type_that_the_model_has_no_prompt_for_adds_nothing(kind: str) -> None:
    assert prompts_of(E5, default="query").choose(input_type=kind) == ""


def test_an_unknown_input_type_is_refused_with_the_list() -> None:
    with pytest.raises(BadPrompt, match="'querry' is unknown; known are query, search_query"):
        prompts_of(E5).choose(input_type="querry")


@pytest.mark.parametrize("input_type", [None, ""])
def test_nothing_asked_means_the_default_prompt(input_type: str | None) -> None:
    assert prompts_of(E5).choose(input_type=input_type) == ""
    assert prompts_of(E5, default="passage").choose(input_type=input_type) == "passage: "
    assert prompts_of(E5, default="passage").choose(input_type="query") == "query: "


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        ("Find it", "Instruct: Find it\nQuery:"),
        ("Instruct: Find it\nQuery: ", "Instruct: Find it\nQuery: "),
        ("", "Instruct: \nQuery:"),
    ],
)
def test_an_instruction_goes_into_qwen3s_frame_once(
    tmp_path: Path, instruction: str, wanted: str
) -> None:
    prompts = read(tmp_path, family="qwen3")
    assert prompts.choose(instruction=instruction) == wanted
    assert prompts.choose(instruction=instruction, input_type="query") == wanted


def test_the_frame_is_that_of_the_models_own_query_prompt() -> None:
    prompts = prompts_of({"query": "Instruct: As trained\nQuery: "}, query=QWEN3_QUERY)
    assert prompts.choose(instruction="Find it") == "Instruct: Find it\nQuery: "


def test_an_instruction_stands_as_it_is_where_the_model_has_no_frame() -> None:
    assert prompts_of(E5).choose(instruction="Find it: ") == "Find it: "


def test_an_instruction_goes_before_names_and_not_before_documents() -> None:
    prompts = prompts_of(E5)
    assert prompts.choose("passage", "query", "Find it: ") == "Find it: "
    assert {prompts.choose(None, kind, "Find it: ") for kind in DOCUMENT_TYPES} == {""}


def test_a_qwen3_query_gets_the_published_prompt_and_documents_none(tmp_path: Path) -> None:
    prompts = read(tmp_path, family="qwen3")
    assert prompts.choose(input_type="query") == QWEN3_QUERY
    assert prompts.choose(input_type="document") == prompts.choose() == ""
    assert prompts.source == "published for the family"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("bge-small-en-v1.5", BGE_EN),
        ("BGE-Base-EN-v1.5", BGE_EN),
        ("BAAI--bge-large-zh-v1.5", BGE_ZH),
        ("bge-large-en", BGE_EN),
        ("bge-m3", ""),
        ("bge-reranker-base", ""),
        ("mine", ""),
    ],
)
def test_bges_published_query_instruction_is_known_by_the_folders_name(
    tmp_path: Path, name: str, wanted: str
) -> None:
    prompts = read(tmp_path / name)
    assert prompts.choose(input_type="query") == wanted
    assert prompts.choose(input_type="document") == prompts.choose() == ""
    assert prompts.source == ("published for the family" if wanted else "none")


def test_empty_prompts_in_the_file_leave_the_familys_own(tmp_path: Path) -> None:
    """sentence-transformers 5 writes them for models that it knows nothing of."""
    prompts = read(tmp_path / "bge-base-en-v1.5", {"prompts": {"query": "", "document": ""}})
    assert prompts.choose(input_type="query") == BGE_EN
    assert prompts.choose("query") == ""
    assert prompts.source == "published for the family"


def test_the_file_goes_before_what_is_published(tmp_path: Path) -> None:
    prompts = read(tmp_path / "bge-base-en-v1.5", {"prompts": E5, "default_prompt_name": "passage"})
    assert prompts.choose(input_type="query") == "query: "
    assert prompts.choose() == "passage: "
    assert prompts.source == FILE


def test_the_setting_goes_before_the_file_name_by_name(tmp_path: Path) -> None:
    prompts = read(tmp_path, {"prompts": E5}, setting={"query": "Q: ", "title": "T: "})
    assert prompts.choose("query") == prompts.choose(input_type="query") == "Q: "
    assert (prompts.choose("passage"), prompts.choose("title")) == ("passage: ", "T: ")
    assert prompts.source == "setting EMBEDDING_PROMPTS"


@pytest.mark.parametrize("stored", [{}, {"prompts": None}, {"prompts": {}}])
def test_a_file_without_prompts_gives_none(tmp_path: Path, stored: dict[str, Any]) -> None:
    prompts = read(tmp_path, stored)
    assert (prompts.by_name, prompts.default_name, prompts.source) == ({}, None, "none")


@pytest.mark.parametrize(
    "stored", [[1], {"prompts": [1]}, {"prompts": E5, "default_prompt_name": "title"}]
)
def test_a_file_that_is_not_as_expected_is_refused_by_name(tmp_path: Path, stored: Any) -> None:
    with pytest.raises(ModelError, match=FILE):
        read(tmp_path, stored)


def test_a_loaded_model_answers_with_its_own_prompts(load_tiny: Embedders) -> None:
    model = load_tiny("tiny-prompts")
    assert model.prompt(None, None, None) == "query: "
    assert model.prompt(None, "document", None) == "passage: "
    with pytest.raises(BadPrompt, match="this model has: document, query"):
        model.prompt("title", None, None)


def test_an_empty_query_prompt_in_the_setting_switches_the_familys_off(tmp_path: Path) -> None:
    folder = tmp_path / "bge-small-en-v1.5"
    folder.mkdir()
    assert read(folder).choose(input_type="query") == BGE_EN
    assert read(folder, setting={"query": ""}).choose(input_type="query") == ""
