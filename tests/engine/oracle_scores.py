"""The oracle of rerank scores: stock transformers, float32, one pair at a time, by the code that
each family's authors publish. Shares no code with the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

# Largest difference of a raw score, relative to scores of about 1.
SCORE_TOLERANCE = 1e-4

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class CrossOracle:
    """BERT's and XLM-RoBERTa's sequence classifiers with one label."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = _load(AutoModelForSequenceClassification, folder)
        self._max_length = max_length

    def ids(self, query: str, document: str) -> list[int]:
        """Only the document is cut."""
        ids: list[int] = self._inputs(query, document)["input_ids"][0].tolist()
        return ids

    @torch.no_grad()
    def raw(self, query: str, document: str) -> float:
        """The logit; the served score is its sigmoid."""
        return float(self._model(**self._inputs(query, document)).logits[0, 0])

    def score(self, query: str, document: str) -> float:
        return sigmoid(self.raw(query, document))

    def _inputs(self, query: str, document: str) -> Any:
        return self._tokenizer(
            query,
            document,
            truncation="only_second",
            max_length=self._max_length,
            return_tensors="pt",
        )


class Qwen3RerankOracle:
    """The model card of Qwen3-Reranker: softmax over the last position's logits of no and yes."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._prompt = _Qwen3Prompt(folder, max_length)
        self._model = _load(AutoModelForCausalLM, folder)

    def ids(self, query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> list[int]:
        return self._prompt.ids(query, document, instruction)

    def score(self, query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> float:
        """The probability of yes."""
        no_yes = self._no_yes(query, document, instruction)
        return float(torch.log_softmax(no_yes, dim=0)[1].exp())

    def raw(self, query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> float:
        """logit(yes) - logit(no); the score is its sigmoid."""
        no_yes = self._no_yes(query, document, instruction)
        return float(no_yes[1] - no_yes[0])

    @torch.no_grad()
    def _no_yes(self, query: str, document: str, instruction: str) -> Tensor:
        ids = torch.tensor([self._prompt.ids(query, document, instruction)])
        logits: Tensor = self._model(input_ids=ids).logits[0, -1]
        return logits[[self._prompt.token_id("no"), self._prompt.token_id("yes")]]


class SeqClsOracle:
    """Qwen3-Reranker converted to a sequence classifier with one label: the same ids."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._prompt = _Qwen3Prompt(folder, max_length)
        self._model = _load(AutoModelForSequenceClassification, folder)

    def ids(self, query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> list[int]:
        return self._prompt.ids(query, document, instruction)

    @torch.no_grad()
    def raw(self, query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> float:
        """The logit; the score is its sigmoid."""
        ids = torch.tensor([self._prompt.ids(query, document, instruction)])
        return float(self._model(input_ids=ids).logits[0, 0])

    def score(self, query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> float:
        return sigmoid(self.raw(query, document, instruction))


class _Qwen3Prompt:
    """Prefix and suffix are tokenized on their own and never cut; what is between them is."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._prefix = self._tokenizer.encode(PREFIX, add_special_tokens=False)
        self._suffix = self._tokenizer.encode(SUFFIX, add_special_tokens=False)
        self._max_length = max_length

    def ids(self, query: str, document: str, instruction: str) -> list[int]:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        room = self._max_length - len(self._prefix) - len(self._suffix)
        middle = self._tokenizer(text, truncation="longest_first", max_length=room)["input_ids"]
        ids: list[int] = self._prefix + middle + self._suffix
        return ids

    def token_id(self, token: str) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(token))


def sigmoid(raw: float) -> float:
    return float(torch.sigmoid(torch.tensor(raw)))


def _load(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
