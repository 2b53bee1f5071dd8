"""Model folders without weights, and what a fake engine makes of them: no torch, no waiting.

A folder has the JSON files of a real one, so that the server's own code reads it. Tokens are
characters; vectors and scores depend on them alone.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import BadPrompt, NoTokens, TextTooLong
from engine.folder.recipe import Overrides, Recipe, read_recipe
from engine.folder.store import ModelFolder
from engine.outputs import Outputs, Sparse
from engine.text.tokens import PairLimits, Side, TextLimits, Token, check_ids, cut_ids

TIMEOUT_S = 60.0
DIM, COLBERT_DIM, MAX_LENGTH = 8, 4, 16
PROMPTS = {"query": "q:", "passage": "p:", "shout": "HEY "}
START, END, BETWEEN = 1, 2, 3
NUM_BYTES = 1000

_NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without tensors


def write_model(
    root: Path,
    name: str,
    architecture: str = "BertModel",
    *,
    max_length: int = MAX_LENGTH,
    has_heads: bool = False,
    prompts: dict[str, str] | None = None,
) -> ModelFolder:
    """`architecture` BertForSequenceClassification is a cross-encoder, Qwen3ForCausalLM in a folder
    whose name has `reranker` a reranker that takes instructions."""
    path = root / name
    path.mkdir()
    if prompts is not None:
        (path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    if has_heads:
        (path / "sparse_linear.pt").touch()
        (path / "colbert_linear.pt").touch()
    (path / "model.safetensors").write_bytes(_NO_WEIGHTS)
    (path / "tokenizer.json").touch()  # its being there is enough for a recipe
    config = {
        "model_type": "qwen3" if architecture.startswith("Qwen3") else "bert",
        "architectures": [architecture],
        "num_labels": 1,
        "max_position_embeddings": max_length,
        "hidden_size": DIM,
    }
    (path / "config.json").write_text(json.dumps(config))
    return ModelFolder(name, path)


def write_three(root: Path, reranker: str) -> Path:
    """A reranker of that name, an embedder with every view, and a broken one; gives the root."""
    write_model(root, reranker, "BertForSequenceClassification", max_length=100)
    write_model(root, "embedder", has_heads=True)
    write_broken(root, "broken")
    return root


def write_broken(root: Path, name: str) -> ModelFolder:
    """A folder that nobody can serve; the reason names the file by its whole path."""
    folder = write_model(root, name)
    (folder.path / "config.json").write_text("{")
    return folder


@dataclass(frozen=True, slots=True)
class FakeTokens:
    ids: list[int]
    outputs: tuple[str, ...] = ("dense",)

    def key(self) -> Hashable:
        return tuple(self.ids), self.outputs


class FakeEngine:
    """Holds what its models share: gates that a test closes, and the record of what ran.

    Loads and steps go on unless `may_load` or `may_run` is cleared.
    """

    def __init__(self) -> None:
        self.may_load, self.may_run = threading.Event(), threading.Event()
        self.may_load.set()
        self.may_run.set()
        self.is_loading, self.is_running = threading.Event(), threading.Event()
        self.loads: list[str] = []
        self.steps: list[tuple[str, int]] = []  # model and sequences of each step
        self.num_bytes: dict[str, int] = {}  # of models that need other than NUM_BYTES
        self.num_releases = 0
        self.overrides = Overrides()

    def load(self, folder: ModelFolder) -> FakeModel | FakeReranker:
        recipe = read_recipe(folder.path, self.overrides)
        self.loads.append(folder.name)
        self.is_loading.set()
        assert self.may_load.wait(TIMEOUT_S)
        kind = FakeReranker if recipe.is_reranker else FakeModel
        return kind(folder.name, recipe, self)

    def measure(self, folder: ModelFolder) -> int:
        return self.num_bytes.get(folder.name, NUM_BYTES)

    def release(self) -> None:
        self.num_releases += 1

    def step(self, name: str, num_sequences: int) -> None:
        """A step of a model begins; it ends when the test lets it."""
        self.is_running.set()
        assert self.may_run.wait(TIMEOUT_S)
        self.steps.append((name, num_sequences))

    @contextlib.contextmanager
    def held_loads(self) -> Iterator[None]:
        """Inside, no load ends."""
        self.is_loading.clear()
        self.may_load.clear()
        try:
            yield
        finally:
            self.may_load.set()


class _Fake:
    vocab_size = 0x110000

    def __init__(self, name: str, recipe: Recipe, engine: FakeEngine) -> None:
        self.name, self.recipe, self.engine = name, recipe, engine
        self.dim, self.max_length = recipe.dim, recipe.max_length
        self.outputs: tuple[str, ...] = recipe.outputs
        self.is_reranker = recipe.is_reranker

    def costs(self, sequences: Sequence[FakeTokens]) -> list[int]:
        return [len(tokens.ids) for tokens in sequences]

    def describe(self) -> dict[str, str | int]:
        return {"model": self.name, "dim": self.dim}

    def spell(self, text: str, add_special_tokens: bool = True, prompt: str = "") -> list[Token]:
        tokens = [Token(ord(c), c, False, i, i + 1) for i, c in enumerate(prompt + text)]
        if not add_special_tokens:
            return tokens
        start, end = (Token(i, f"<{i}>", True, None, None) for i in (START, END))
        return [start, *tokens, end]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, index: int = 0) -> str:
        check_ids(ids, self.vocab_size, index)
        names = [f"<{i}>" if i in (START, END, BETWEEN) else chr(i) for i in ids]
        kept = [n for n in names if len(n) == 1 or not skip_special_tokens]
        return "".join(kept).encode("utf-8", "replace").decode()  # no lone surrogate


class FakeModel(_Fake):
    """An embedder: a token a character and two special ones."""

    def prompt(
        self, prompt_name: str | None, input_type: str | None, instruction: str | None
    ) -> str:
        return self.recipe.prompts.choose(prompt_name, input_type, instruction)

    def tokenize(
        self,
        texts: Sequence[str],
        limits: TextLimits,
        prompt: str = "",
        outputs: tuple[str, ...] = ("dense",),
        first_index: int = 0,
    ) -> list[FakeTokens]:
        num_special = 2 if limits.add_special_tokens else 0
        room = max(0, limits.max_length - num_special)
        result = []
        for i, text in enumerate([prompt + text for text in texts], first_index):
            if not limits.truncate and len(text) > room:
                raise TextTooLong(i, len(text) + num_special, limits.max_length)
            if not text and not num_special:
                raise NoTokens(i, "without special tokens")
            ids = list(map(ord, _kept(text, room, limits.side)))
            result.append(FakeTokens([START, *ids, END] if num_special else ids, outputs))
        return result

    def tokens_of(
        self,
        ids: Sequence[Sequence[int]],
        limits: TextLimits,
        outputs: tuple[str, ...] = ("dense",),
        first_index: int = 0,
    ) -> list[FakeTokens]:
        result = []
        for i, each in enumerate(ids, first_index):
            check_ids(each, self.vocab_size, i)
            result.append(FakeTokens(cut_ids(each, limits, i), outputs))
        return result

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Some tokens have the same text, as some of real tokenizers do."""
        return [chr(token_id).lower() for token_id in token_ids]

    def run(self, step: Sequence[FakeTokens]) -> list[Outputs]:
        self.engine.step(self.name, len(step))
        return [views_of(tokens) for tokens in step]


def _kept(text: str, num_chars: int, side: Side) -> str:
    return text[:num_chars] if side == "right" else text[max(0, len(text) - num_chars) :]


def views_of(fake: FakeTokens) -> Outputs:
    dense = _random(fake.ids, DIM)
    sparse = colbert = None
    if "sparse" in fake.outputs:
        ids = np.unique([i for i in fake.ids if i > BETWEEN]).astype(np.int64)
        weights = [float(_random([int(i)], 1)[0]) ** 2 for i in ids]
        sparse = Sparse(ids, np.asarray(weights, np.float32))
    if "colbert" in fake.outputs:
        rows = [_random([i, token_id], COLBERT_DIM) for i, token_id in enumerate(fake.ids[1:])]
        matrix = np.stack(rows)
        colbert = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    tokens = None
    if "tokens" in fake.outputs:
        tokens = np.stack([_random([i], DIM) for i in fake.ids])
    return Outputs(dense, sparse, colbert, tokens)


def _random(seed: Sequence[int], size: int) -> NDArray[np.float32]:
    return np.random.default_rng(list(seed)).standard_normal(size).astype(np.float32)


class FakeReranker(_Fake):
    """A pair's score: how many of the query's characters the document has, less its length."""

    def tokenize_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: PairLimits,
        instruction: str | None = None,
        first_index: int = 0,
    ) -> list[FakeTokens]:
        if instruction is not None and self.recipe.kind == "cross-encoder":
            raise BadPrompt("this reranker takes no instruction")
        pairs = [((instruction or "") + query, document) for query, document in pairs]
        result = []
        for i, (query, document) in enumerate(pairs, first_index):
            if limits.max_document is not None:
                document = _kept(document, limits.max_document, limits.side)
            num_tokens = len(query) + len(document) + 3
            if num_tokens > limits.max_length and not limits.truncate:
                raise TextTooLong(i, num_tokens, limits.max_length)
            room = max(0, limits.max_length - len(query) - 3)
            document = _kept(document, room, limits.side)
            ids = [START, *map(ord, query), BETWEEN, *map(ord, document), END]
            result.append(FakeTokens(ids))
        return result

    def run(self, step: Sequence[FakeTokens]) -> NDArray[np.float32]:
        self.engine.step(self.name, len(step))
        return np.array([_score(tokens.ids) for tokens in step], np.float32)


def _score(ids: list[int]) -> float:
    middle = ids.index(BETWEEN)
    return raw_score("".join(map(chr, ids[1:middle])), "".join(map(chr, ids[middle + 1 : -1])))


def raw_score(query: str, document: str) -> float:
    """What the reranker thinks of a pair."""
    return len(set(query) & set(document)) - len(document) / 8


def relevance(query: str, document: str) -> float:
    """The same from 0 to 1."""
    return float(1 / (1 + np.exp(-raw_score(query, document))))
