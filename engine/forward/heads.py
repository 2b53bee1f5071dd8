"""What comes after the backbone: a pooled vector's further modules, bge-m3's two heads, scores.

All compute in float32, whatever the backbone's type. Their tensors come from safetensors, or from
pickles read with `weights_only=True`, so nothing that is read can run code. Must not know
tokenizers or batching.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import ModelError
from engine.folder.recipe import Recipe
from engine.folder.sentence_files import Module
from engine.folder.weight_files import weight_files
from engine.forward.backbone import Hidden

# Activations that sentence-transformers' Dense may name; any other would need code of its own.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
}
_STATE_FILES = ("model.safetensors", "pytorch_model.bin")


class Dense(nn.Module):
    """sentence-transformers' Dense: `activation(x W^T + b)`, plus x if it has a residual."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        config, state = module.config, read_state(module.folder, *_STATE_FILES)
        name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        activation = _ACTIVATIONS.get(name.rpartition(".")[2])
        if activation is None or not name.startswith("torch."):
            raise ModelError(f"{module.folder}: activation {name} is not supported")
        self.activation = activation()
        self.linear = linear_of(module, state, "linear.")
        self.residual: nn.Module | None = None
        if config.get("use_residual"):
            has_own = "residual.weight" in state
            self.residual = linear_of(module, state, "residual.") if has_own else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x))
        return out if self.residual is None else out + self.residual(x)


class L2(nn.Module):
    """sentence-transformers' Normalize, where another module follows it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


def linear_of(module: Module, state: dict[str, Tensor], prefix: str) -> nn.Linear:
    """A linear layer of the stored shape. Raises ModelError without its weight."""
    weight = state.get(f"{prefix}weight")
    if weight is None or weight.ndim != 2:
        raise ModelError(f"{module.folder}: no matrix {prefix}weight")
    return _linear(weight, state.get(f"{prefix}bias"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer.eval().requires_grad_(False)


def load_modules(recipe: Recipe, device: str) -> nn.Sequential:
    """The modules between pooling and the answer, `[n, H * modes]` -> `[n, dim]`."""
    layers: list[nn.Module] = []
    for module in recipe.modules:
        if module.kind == "Dense":
            layers.append(Dense(module))
        elif module.kind == "Normalize":
            layers.append(L2())
        else:
            layers.append(_layer_norm(module))
    return nn.Sequential(*layers).eval().requires_grad_(False).to(device)


def check_widths(recipe: Recipe, modules: nn.Sequential, heads: M3Heads, hidden_size: int) -> None:
    """Raises ModelError where a module or a head does not fit its input, or its output is not as
    wide as the config says."""
    for name, head in heads.named_children():
        if isinstance(head, nn.Linear) and head.in_features != hidden_size:
            width = head.in_features
            raise ModelError(f"{recipe.folder / name}.pt: reads {width} values, not {hidden_size}")
    device = next((each.device for each in modules.parameters()), None)
    pooled = torch.zeros(1, hidden_size * len(recipe.pooling), device=device)
    try:
        dim = modules(pooled).shape[1]
    except RuntimeError as error:
        raise ModelError(
            f"{recipe.folder}: the modules after pooling do not fit: {error}"
        ) from error
    if dim != recipe.dim:
        what = f"the modules after pooling give {dim} values, the config says {recipe.dim}"
        raise ModelError(f"{recipe.folder}: {what}")


def _layer_norm(module: Module) -> nn.LayerNorm:
    state = read_state(module.folder, *_STATE_FILES)
    layer = nn.LayerNorm(len(state["norm.weight"]))
    layer.weight.data, layer.bias.data = state["norm.weight"], state["norm.bias"]
    return layer


class M3Heads(nn.Module):
    """bge-m3's `sparse_linear` (H -> 1) and `colbert_linear` (H -> H), if the folder has them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.sparse_linear = self._read(recipe, "sparse", "sparse_linear.pt")
        self.colbert_linear = self._read(recipe, "colbert", "colbert_linear.pt")

    @staticmethod
    def _read(recipe: Recipe, output: str, name: str) -> nn.Linear | None:
        if output not in recipe.outputs:
            return None
        state = read_state(recipe.folder, name)
        if "weight" not in state:
            raise ModelError(f"{recipe.folder / name}: no weight")
        return _linear(state["weight"], state.get("bias"))

    def sparse(self, states: Tensor) -> Tensor:
        """Lexical weight of each token: `[T, H]` -> `[T]`, none negative."""
        assert self.sparse_linear is not None
        weights: Tensor = torch.relu(self.sparse_linear(states)).squeeze(-1)
        return weights

    def colbert(self, states: Tensor) -> Tensor:
        """Token vectors, L2 each: `[T, H]` -> `[T, H']`."""
        assert self.colbert_linear is not None
        return nn.functional.normalize(self.colbert_linear(states), dim=-1)


ScoreHead = Callable[[Hidden], Tensor]  # raw scores `[n]`


def classifier(model: Any) -> ScoreHead:
    """The head of a `*ForSequenceClassification` with one label, over its backbone's states."""
    if hasattr(model, "score"):  # decoders: one linear layer over the last token
        score = model.score.float()
        return lambda hidden: score(hidden.last().float()).squeeze(-1)
    head = model.classifier.float()
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:  # BERT: tanh of a linear layer over [CLS], then a linear layer
        if model.dtype != torch.float32:
            pooler = copy.deepcopy(pooler).float()  # the model's own runs in the model's type
        return lambda hidden: head(pooler(hidden.first().float()[:, None])).squeeze(-1)
    return lambda hidden: head(hidden.first().float()[:, None]).squeeze(-1)  # takes [:, 0] itself


def yes_no_rows(recipe: Recipe, model: Any, words: Tensor, token_ids: Sequence[int]) -> Tensor:
    """float32 `[2, H]`: the rows of yes and no, all that is read of the output matrix."""
    rows = list(token_ids)  # yes, no
    output = read_rows(recipe.folder, "lm_head.weight", rows)
    if output is None and getattr(model.config, "tie_word_embeddings", True) is False:
        raise ModelError(f"{recipe.folder}: no lm_head.weight, and config.json does not tie it")
    if output is None:  # tied: the input embeddings are the output matrix
        output = words[rows].float()
    return output.to(words.device)


def yes_no(rows: Tensor) -> ScoreHead:
    """logit(yes) - logit(no) at the last token; its sigmoid is the softmax over the two.

    Logits of the whole vocabulary never exist.
    """
    direction = rows[0] - rows[1]
    return lambda hidden: hidden.last().float() @ direction


def read_state(folder: Path, *names: str) -> dict[str, Tensor]:
    """The first of `names` that is there, as name -> float32 tensor. Raises ModelError."""
    for name in names:
        path = folder / name
        if path.is_file():
            state = _read(path)
            if not all(isinstance(value, Tensor) for value in state.values()):
                raise ModelError(f"{path}: holds more than tensors")
            return {key: value.float() for key, value in state.items()}
    raise ModelError(f"{folder}: none of {', '.join(names)} is there")


def read_rows(folder: Path, name: str, rows: list[int]) -> Tensor | None:
    """float32 `[len(rows), H]` of the matrix `name`, the rest never read; None if it is not there.

    Pickles are memory-mapped where they can be.
    """
    for file in weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as stored:
                    if name in stored.keys():  # noqa: SIM118  # it has no __contains__
                        matrix = stored.get_slice(name)
                        return torch.stack([matrix[row].float() for row in rows])
            elif (state := _read(file)).get(name) is not None:
                return state[name][rows].float()
        except (SafetensorError, IndexError) as error:
            raise ModelError(f"{file}: {name}: {error}") from error
    return None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # the unpickler raises many kinds, and says what it refused
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: {reason}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path}: not a dictionary of tensors")
    return state


def _is_zip(path: Path) -> bool:
    """Files of torch before 1.6 are plain pickles, which cannot be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
