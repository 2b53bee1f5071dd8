"""The `mteb` package, unmodified: its models over our routes score what sentence-transformers does
on the same weights, on tiny tasks made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mteb
import openai
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.model_implementations.openai_models import OpenAIModel
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper, OpenAIAPIRerankWrapper
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.clients.expected import DIM, DOCUMENTS, MAX_LENGTH, MINILM, QUERY, RERANKER
from tests.servers import Server

# What mteb itself sets off with every sentence-transformers model.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The fill_missing parameter:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension`:FutureWarning"),
]

TOLERANCE = 1e-4

CORPUS = [
    "Short waves of sunlight are scattered most, and so the sky is blue.",
    "At sunset the light crosses more air, and red is what is left.",
    "The sea looks blue because it mirrors the sky and swallows red light.",
    "Bread rises because yeast makes gas out of sugar.",
    "A sourdough starter is flour and water with wild yeast.",
    "Steel is iron with a little carbon.",
    "Rust is what air and water make of iron.",
    "The moon pulls the water of the sea: that is the tide.",
    "A year is the time in which the earth goes round the sun.",
    "The seasons come from the tilt of the earth's axis.",
    "Blue paint was once made of a precious stone.",
    "Penguins live in the south, polar bears in the north.",
]
QUESTIONS = {
    "why is the sky blue?": [0],
    "what makes dough grow?": [4, 3],
    "where does the colour of water come from?": [10, 2],
    "how is iron protected from weather?": [6],
    "why is it cold in winter?": [9, 11],
}
PAIRS = [
    ("A cat sits on the mat.", "A cat is on a rug.", 4.5),
    ("A cat sits on the mat.", "A dog runs in the park.", 1.5),
    ("He plays the guitar.", "A man is playing music.", 3.5),
    ("It is raining.", "The sun shines.", 2.0),
    ("Two boys kick a ball.", "Children play football.", 4.0),
    ("She reads a book.", "The stock market fell.", 0.0),
    ("The train is late.", "The train has not come yet.", 4.0),
    ("A bird flies.", "A plane takes off.", 1.0),
]


def metadata(kind: Any, main_score: str) -> Any:
    return TaskMetadata(
        name=f"Local{kind}",
        type=kind,
        main_score=main_score,
        description="Made by a test.",
        reference=None,
        dataset={"path": "none", "revision": "none"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2026-01-01", "2026-01-01"),
        domains=[],
        task_subtypes=[],
        license="cc-by-4.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
        modalities=["text"],
    )


class LocalSTS(AbsTaskSTS):
    metadata = metadata("STS", "cosine_pearson")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        left, right, score = map(list, zip(*PAIRS, strict=True))
        split = Dataset.from_dict({"sentence1": left, "sentence2": right, "score": score})
        self.dataset = DatasetDict({"test": split})
        self.data_loaded = True


def named(texts: list[str], kind: str) -> Any:
    return Dataset.from_list([{"id": f"{kind}{i}", "text": text} for i, text in enumerate(texts)])


class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("Retrieval", "ndcg_at_10")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        relevant = {
            f"q{i}": {f"d{place}": 1 for place in places}
            for i, places in enumerate(QUESTIONS.values())
        }
        split: Any = {
            "queries": named(list(QUESTIONS), "q"),
            "corpus": named(CORPUS, "d"),
            "relevant_docs": relevant,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalReranking(AbsTaskRetrieval):
    """The tiny reranker knows no words: what is relevant is arbitrary, neither its best nor its
    worst, and the more queries the less the score could be right by chance."""

    metadata = metadata("Reranking", "map_at_1000")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        queries = [QUERY, *(f"w{i} w{i + 1}" for i in range(10, 40, 10))]
        documents = [*DOCUMENTS, *(f"w{i} w{i * 7}" for i in range(10, 17))]
        names = [f"d{i}" for i in range(len(documents))]
        split: Any = {
            "queries": named(queries, "q"),
            "corpus": named(documents, "d"),
            "relevant_docs": {
                f"q{i}": {f"d{place}": 1 for place in (i, i + 5)} for i in range(len(queries))
            },
            "top_ranked": {f"q{i}": names for i in range(len(queries))},
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def main_score(model: Any, task: Any) -> float:
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return float(result.task_results[0].get_score())


def over_vllms_route(server: Server) -> Any:
    """Its wrapper for vLLM and other servers. Texts without a chat template is its setting for
    models that are no chat models."""
    return OpenAIAPIEncodeWrapper(server.url, MINILM, modalities=["text"], use_chat_template=False)


def over_openais_client(server: Server) -> Any:
    """Its model for OpenAI's own embedders: `dimensions` is the model's, 2,048 texts a call."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    model = OpenAIModel(MINILM, max_tokens=8191, embed_dim=DIM, client=client)
    model.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": f"openai/{MINILM}"})
    return model


@pytest.mark.usefixtures("cl100k_base")
@pytest.mark.parametrize("task", [LocalSTS, LocalRetrieval])
@pytest.mark.parametrize("over", [over_vllms_route, over_openais_client])
def test_an_embedding_task_scores_what_sentence_transformers_does(
    server: Server, models: Path, over: Any, task: Any
) -> None:
    oracle = SentenceTransformer(str(models / MINILM), device="cpu")
    wanted = main_score(oracle, task())
    assert 0.05 < wanted < 0.98, "a score that anything could reach"
    assert main_score(over(server), task()) == pytest.approx(wanted, abs=TOLERANCE)


def test_the_longest_input_is_found_in_the_list_of_models(server: Server) -> None:
    assert over_vllms_route(server).max_length == MAX_LENGTH


def test_a_reranking_task_scores_what_sentence_transformers_does(
    server: Server, models: Path
) -> None:
    oracle = CrossEncoder(str(models / RERANKER), device="cpu")
    wanted = main_score(oracle, LocalReranking())
    assert 0.05 < wanted < 0.95, "a score that anything could reach"
    ours = OpenAIAPIRerankWrapper(server.url, RERANKER, modalities=["text"])
    assert main_score(ours, LocalReranking()) == pytest.approx(wanted, abs=TOLERANCE)
