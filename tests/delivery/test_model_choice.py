"""Names and file lists that people and hubs may send: what they mean, and that none gets out."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MODELS = Path("/srv/models")


@pytest.fixture(scope="module")
def choice() -> Iterator[ModuleType]:
    """The module as download-model.sh runs it: from the scripts folder, which is no package."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("model_choice")
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(
    ("typed", "repo"),
    [
        ("bge-m3", "BAAI/bge-m3"),
        ("BGE-Reranker-V2-M3", "BAAI/bge-reranker-v2-m3"),
        ("bge-large-zh-v1.5", "BAAI/bge-large-zh-v1.5"),
        ("qwen3-embedding-0.6b", "Qwen/Qwen3-Embedding-0.6B"),
        ("Qwen3-Reranker-8B", "Qwen/Qwen3-Reranker-8B"),
        ("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("Some-Org/some.Model_1", "Some-Org/some.Model_1"),
    ],
)
def test_short_names_in_any_case_mean_their_publisher(
    typed: str, repo: str, choice: ModuleType
) -> None:
    assert choice.repo_for(typed) == repo


@given(st.one_of(st.text(), st.text(alphabet="ab./-_~$;\\ \n", max_size=12)))
def test_whatever_is_typed_never_leaves_the_models_folder(choice: ModuleType, typed: str) -> None:
    try:
        repo = choice.repo_for(typed)
    except ValueError:
        return
    assert Path(os.path.normpath(MODELS / repo.rpartition("/")[2])).parent == MODELS
    assert re.fullmatch(r"[\w./-]+", repo, re.ASCII)


@given(st.one_of(st.text(), st.text(alphabet="ab./-", max_size=12)))
def test_whatever_revision_is_typed_stays_inside_its_folder(choice: ModuleType, typed: str) -> None:
    try:
        revision = choice.revision_for(typed)
    except ValueError:
        return
    assert Path(os.path.normpath(MODELS / revision)).is_relative_to(MODELS)


def test_hostile_listing_names_no_file_outside_the_folder(choice: ModuleType) -> None:
    hostile = ["../config.json", "/config.json", "1_Pooling/../../config.json", "a/config.json"]
    assert choice.needed_files([*hostile, "config.json\n", "model.safetensors/../x"]) == []


def test_sharded_weights_come_with_their_index(choice: ModuleType) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    listed = [*shards, "model.safetensors.index.json", "pytorch_model.bin.index.json"]
    assert choice.needed_files(listed) == sorted([*shards, "model.safetensors.index.json"])


def test_every_folder_takes_pickled_weights_only_where_it_has_no_others(
    choice: ModuleType,
) -> None:
    listed = ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin"]
    assert choice.needed_files(listed) == ["2_Dense/pytorch_model.bin", "model.safetensors"]
