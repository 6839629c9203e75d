"""The decoder of `ttlib.control` in native code, and the choice between the two."""

import ctypes
import functools
import os
import sys
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttlib import control
from ttlib.model import GPT
from ttlib.native import compiling
from ttlib.native.compiling import NotCompiledError
from ttlib.tokenizer import Tokenizer

POOLED_BYTES = 2**28  # memory that a decoder leaves to the next one of its model, at most
CHOICES = ("auto", "native", "torch")


def _address(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _call(name: str, *arguments) -> None:
    """Call a function of the library; raises IndexError or MemoryError."""
    if outcome := getattr(compiling.library(), f"planner_{name}")(*arguments):
        raise IndexError("a bin or a parent is out of range") if outcome == 1 else MemoryError("no memory for planning")


class Packed:
    """A model's weights in the order in which the planner reads them, and the memory of a decoder that is gone."""

    @torch.no_grad()
    def __init__(self, model: GPT):
        config, embeddings = model.config, [model.token.weight.double(), model.position.weight.double()]
        embeddings = [x - x.mean(1, keepdim=True) for x in embeddings]
        linear = []
        for b in model.blocks:
            (weight, bias), scale = _folded(b.norm_attention, b.qkv), torch.ones(3 * config.d_model, 1)
            scale[: config.d_model] = (config.d_model // config.n_head) ** -0.5  # of queries
            linear += [(weight * scale, bias * scale[:, 0]), (b.out.weight, b.out.bias)]
            linear += [_folded(b.norm_mlp, b.up), (b.down.weight, b.down.bias)]
        linear.append(_folded(model.norm, model.head))
        weights = [*embeddings, *(x @ linear[0][0].T for x in embeddings)]
        weights += [part for pair in linear for part in _panels(*pair)]
        self.weights = [x.float().contiguous() for x in weights]
        self.addresses = (ctypes.c_void_p * len(weights))(*(x.data_ptr() for x in self.weights))
        sizes = config.d_model, config.n_head, config.V, len(embeddings[0]), config.n_layer
        self.sizes, self.spare, self.library = (ctypes.c_int64 * 5)(*sizes), [], compiling.library()

    def take(self) -> ctypes.c_void_p:
        """Return a planner without tokens, in memory that was used before if there is some."""
        if self.spare:
            return self.spare.pop()
        made = ctypes.c_void_p()
        _call("new", self.sizes, self.addresses, ctypes.byref(made))
        return made

    def give_back(self, planner: ctypes.c_void_p) -> None:
        """Keep one planner's memory for the next decoder unless it is large; free the others."""
        if self.spare or self.library.planner_bytes(planner) > POOLED_BYTES:
            self.library.planner_free(planner)
        else:
            self.spare.append(planner)

    def __del__(self):
        for planner in self.spare:
            self.library.planner_free(planner)


def _folded(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer after a LayerNorm whose gain and shift they take over."""
    weight = linear.weight.double()
    return weight * norm.weight, linear.bias + weight @ norm.bias.double()


def _panels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Pad outputs to whole panels of P.  (n, k), (n,) -> (N / P, k, P), (N,)"""
    lacking = -len(weight) % (P := compiling.library().planner_panel())
    return F.pad(weight, (0, 0, 0, lacking)).unflatten(0, (-1, P)).mT, F.pad(bias, (0, lacking))


_packed: weakref.WeakKeyDictionary[GPT, tuple[tuple, Packed]] = weakref.WeakKeyDictionary()


def packed(model: GPT) -> Packed:
    """Return a model's packed weights; they are packed again after a change of a weight."""
    # Tensors made in inference mode do not count their changes.
    changes = [hash(x.numpy().tobytes()) if x.is_inference() else x._version for x in model.parameters()]
    version = tuple(x.data_ptr() for x in model.parameters()), changes
    if model not in _packed or _packed[model][0] != version:
        _packed[model] = version, Packed(model)
    return _packed[model][1]


class NativeDecoder:
    """The model as the verbs of `search`, as `control.Decoder`, in native code.

    It is for models in fp32 on a CPU; see `obstacle`.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, ids: Tensor):
        self.model, self.tokenizer, self.packed = model, tokenizer, packed(model)
        self.planner = self.packed.take()
        (E, L), transition = ids.shape, tokenizer.transition
        self.length, self.dim = L, transition.dimension(L, model.config.prefix)
        self._check_window(0, L)
        # A quantile tokenizer's empty bins have no mass.  (D, V)
        zero = torch.zeros(tokenizer.empty.shape)
        self.empty = zero.masked_fill(tokenizer.empty, -torch.inf) if tokenizer.kind == "quantile" else None
        self.log_p = torch.empty(E, 1, model.config.V)
        ids = model.model_input(ids).contiguous()
        _call("begin", self.planner, E, L, _address(ids), self._empty(), _address(self.log_p))

    def _empty(self) -> ctypes.c_void_p:
        return _address(None if self.empty is None else self.empty[self.dim])

    def _check_window(self, start: int, tokens: int) -> None:
        if start + tokens > (window := self.model.config.max_tokens):
            raise ValueError(
                f"{start} + {tokens} tokens do not fit the window of {window}: plan less far, or train a longer window"
            )

    def advance(self, bins: Tensor, parents: Tensor | None) -> Tensor:
        """Append bins (G, K) to sequences `parents` (G, K) -> log_p (G, K, V)."""
        self._check_window(self.length, 1)
        transition, (G, K) = self.tokenizer.transition, bins.shape
        first, blank = transition.first_id(self.tokenizer.V, self.dim), self.dim == transition.reward_to_go
        self.length, self.dim = self.length + 1, transition.dimension(self.dim + 1)
        bins, parents = bins.contiguous(), None if parents is None else parents.contiguous()
        log_p = torch.empty(G, K, self.model.config.V)
        addresses = _address(bins), _address(parents), first, blank, self._empty(), _address(log_p)
        _call("advance", self.planner, G, K, *addresses)
        return log_p

    def select_plans(self, rows: Tensor) -> None:
        """Make each of the sequences `rows` (E, B) a group of its own."""
        _call("select", self.planner, *rows.shape, _address(rows.contiguous()))

    def __del__(self):
        if hasattr(self, "planner"):
            self.packed.give_back(self.planner)


def obstacle(model: GPT) -> str:
    """Return why the native planner cannot read a model, or an empty string.  It is compiled at the first call."""
    weight, config = model.token.weight, model.config
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"it computes in fp32 on a CPU, and the model is in {weight.dtype} on {weight.device}"
    if (d_head := config.d_model // config.n_head) % 16:
        return f"its heads are 16, 32, 48 or more wide, and the model's are {d_head}"
    if model.training and config.dropout:
        return "it has no dropout, and the model is in training"
    return compiling.failure()


def choice() -> str:
    """Return the user's choice, $TTLIB_PLANNER; raises ValueError where it is none of CHOICES."""
    if (chosen := os.environ.get("TTLIB_PLANNER") or "auto") not in CHOICES:
        raise ValueError(f"TTLIB_PLANNER={chosen}; expected one of {', '.join(CHOICES)}")
    return chosen


def planner() -> str:
    """Return which planner reads the models of this process where it can: "native" or "torch"."""
    return "torch" if choice() == "torch" or torch.cuda.is_available() or compiling.failure() else "native"


@functools.cache
def _say(reason: str) -> None:
    """Print once why PyTorch plans."""
    print(f"PyTorch plans instead of the native planner: {reason}", file=sys.stderr)


def decoder_for(model: GPT) -> type:
    """Return NativeDecoder where it can read the model, else control.Decoder; why not is printed once.

    TTLIB_PLANNER=torch always gives control.Decoder; `native` raises NotCompiledError instead of giving it.
    """
    if (chosen := choice()) == "torch":
        return control.Decoder
    if not (reason := obstacle(model)):
        return NativeDecoder
    if chosen == "native":
        raise NotCompiledError(f"TTLIB_PLANNER=native, but the native planner cannot be used: {reason}")
    if model.token.weight.device.type == "cpu":
        _say(reason)
    return control.Decoder
