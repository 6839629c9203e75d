"""The Trajectory Transformer: a GPT over token ids (Section 3.1, Appendix A) with a key-value cache."""

import ctypes
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttlib import results
from ttlib.tokenizer import Transition

if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
    # glibc gives freed memory back to the system, which hands it out again page by page: 5 to 10% of a decision.
    # It keeps up to 1 GiB instead (M_TRIM_THRESHOLD), and blocks of up to 32 MiB (M_MMAP_THRESHOLD).
    ctypes.CDLL(None).mallopt(-1, 2**30)
    ctypes.CDLL(None).mallopt(-3, 2**25)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model.  `T` transitions of D tokens follow `prefix` goal tokens."""

    transition: Transition
    T: int
    V: int = 100  # not stated in the paper
    n_layer: int = 4  # Appendix A, with the three below
    n_head: int = 6
    d_model: int = 192
    dropout: float = 0.1
    dropout_where: str = "block"  # "block": at the end of each block; "everywhere": embedding, attention, residual
    prefix: int = 0
    missing: bool = results.added(False)  # states may be hidden: ids V*D + i stand for "state dimension i unknown"
    smooth: float = results.added(0.0)  # initial embeddings of a dimension's bins are alike over this many bins

    @property
    def max_tokens(self) -> int:
        return self.prefix + self.T * self.transition.D

    def __post_init__(self):
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_head={self.n_head}")
        if self.dropout_where not in ("block", "everywhere"):
            raise ValueError(f"dropout_where={self.dropout_where!r}; expected 'block' or 'everywhere'")
        if self.missing and self.V > 255:
            raise ValueError(f"V={self.V} bins; expected at most 255 where states may be hidden: byte 255 marks those")
        if self.T < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"T={self.T}, dropout={self.dropout}; expected T >= 1 and 0 <= dropout < 1")
        if self.smooth < 0:
            raise ValueError(f"smooth={self.smooth}; expected a length in bins, 0 for independent embeddings")


Attend = Callable[[int, Tensor], Tensor]  # layer, its q, k and v (B, t, 3 * d_model) -> (B, t, d_model)


class Dropout(nn.Module):
    """Dropout.  On a CPU its draws have 16 bits, four from each random number: half the time of torch's own."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
        draws = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # -2^15 ... 2^15 - 1
        return x * (draws >= round(self.p * 2**16) - 2**15).to(x.dtype).mul_(1 / (1 - self.p))


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, everywhere = config.d_model, config.dropout_where == "everywhere"
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.drop_residual = Dropout(config.dropout if everywhere else 0.0)
        self.drop_end = Dropout(0.0 if everywhere else config.dropout)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        # Departs from the paper: LayerNorm stands before each sublayer, not after it as in GPT.
        dtype = self.qkv.weight.dtype  # of the matrices
        x = x + self.drop_residual(self.out(attend(layer, self.qkv(self.norm_attention(x).to(dtype)))))
        x = x + self.drop_residual(self.down(F.gelu(self.up(self.norm_mlp(x).to(dtype)))))
        return self.drop_end(x)


class GPT(nn.Module):
    """Logits over the V bins of the next token; which dimension they are of follows from the position."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        ids = config.V * config.transition.D + config.transition.N * config.missing
        self.token = nn.Embedding(ids, config.d_model)
        self.position = nn.Embedding(config.max_tokens, config.d_model)
        self.drop = Dropout(config.dropout if config.dropout_where == "everywhere" else 0.0)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.V)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # GPT-2: the projections that end on the residual stream shrink with depth.
                depth = math.sqrt(2 * self.config.n_layer) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 / depth)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.config.smooth:
            # Departs from the paper: initial embeddings of neighbouring bins may be alike, far lower loss per minute.
            # Each channel is a random cosine: a Gaussian process of length `smooth` (Rahimi and Recht 2007).
            (D, V), d = (self.config.transition.D, self.config.V), self.config.d_model
            frequency = torch.randn(D, 1, d) / self.config.smooth
            phase = torch.arange(V)[:, None] * frequency + 2 * math.pi * torch.rand(D, 1, d)
            with torch.no_grad():
                self.token.weight[: V * D] = 0.3 * math.sqrt(2) * phase.cos().flatten(0, 1)

    def in_bf16(self) -> "GPT":
        """In place: the matrices of blocks in bf16, for planning.  Scores of attention, the residual stream, norms and
        the head stay in float32: with all in bf16 predictions are five times as far off."""
        for block in self.blocks:
            for linear in (block.qkv, block.out, block.up, block.down):
                linear.bfloat16()
        return self

    def model_input(self, ids: Tensor) -> Tensor:
        """ids: any shape -> same shape, every reward-to-go replaced by bin 0 of its dimension."""
        transition, V = self.config.transition, self.config.V
        if not transition.rewards:
            return ids
        # Departs from the paper: reward-to-go is a target, never an input (its true value is unknown while acting).
        R = V * transition.reward_to_go
        if self.config.missing:
            return ids.where((ids < R) | (ids >= V * transition.D), R)
        return ids.clamp(max=R)

    def forward(self, ids: Tensor, attend: Attend | None = None, start: int = 0) -> Tensor:
        """ids: (B, L) at positions start... -> logits (B, L, V).  `attend` defaults to plain causal attention."""
        if start + ids.shape[1] > self.config.max_tokens:
            raise ValueError(
                f"{start} + {ids.shape[1]} tokens do not fit the window of {self.config.max_tokens}: "
                "shorten the context or the plan, or train with a longer window"
            )
        x = self.drop(self.token(self.model_input(ids)) + self.position.weight[start : start + ids.shape[1]])
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend or self.causal)
        return self.head(self.norm(x))

    def causal(self, layer: int, qkv: Tensor) -> Tensor:
        """Attention of each token to itself and those before it."""
        q, k, v = heads(qkv, self.config.n_head)
        drop = self.drop.p if self.training else 0.0
        if q.device.type != "cpu" or not (drop or (self.training and q.dtype == torch.bfloat16)):
            # Of bf16 too the fused kernels keep scores in float32.
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop).transpose(1, 2).flatten(2)
        # On a CPU the fused kernel takes three times as long to train in bf16, and has no dropout.  The softmax takes
        # twice as long where rows are no multiple of 32.
        L = q.shape[2]
        q, k, v = (F.pad(x, (0, 0, 0, -L % 32)).flatten(0, 1) for x in (q, k, v))
        scores = torch.baddbmm(causal_mask(q.shape[1], q), q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5)
        y = self.drop(scores.softmax(-1)) @ v
        return y[:, :L].unflatten(0, (-1, self.config.n_head)).transpose(1, 2).flatten(2)

    @torch.inference_mode()
    def attention_maps(self, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """ids: (B, L) -> per layer the weights (B, H, L, L), values and outputs (B, H, L, d_head)."""
        maps = []

        def attend(layer, qkv):
            q, k, v = heads(qkv, self.config.n_head)
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + causal_mask(q.shape[2], q)).softmax(-1)
            maps.append((weights, v, weights @ v))
            return maps[-1][2].transpose(1, 2).flatten(2)

        self(ids, attend)
        return maps


def longer(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: of the scores of attention."""
    return torch.promote_types(dtype, torch.float32)


def heads(qkv: Tensor, n_head: int) -> list[Tensor]:
    """(B, t, 3 * d_model) -> q, k and v, (B, H, t, d_head) each."""
    return [x.unflatten(2, (n_head, -1)).transpose(1, 2) for x in qkv.chunk(3, 2)]


def causal_mask(t: int, like: Tensor) -> Tensor:
    """(t, t), -inf above the diagonal: token i sees itself and what came before."""
    return torch.full((t, t), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


class Cache:
    """Keys and values of tokens already read.

    What is read first is a context for each of E sequences.  What follows grows on it as trees, one for each of G
    groups of K sequences.  G = E at first, and always G / E successive groups share a context.  A tree has S slots
    for tokens, and `path` (1 or G, K, n) names the slots of each sequence's own n, with 1 where all groups are
    alike.  So sequences fork and change places without a key being moved: they attend to all slots of their tree,
    and a mask hides those off their path and those still free.
    """

    def __init__(self):
        self.context: list[tuple[Tensor, Tensor]] = []  # per layer keys and values (H * E, L, d_head)
        self.trees: list[list[Tensor]] = []  # per layer keys and values (H, G, S, d_head)
        self.path = torch.empty(0)
        self.first = self.groups = self.rows = self.used = 0  # tokens of context, G, G * K, slots that are not free
        self.room = 16  # slots that a tree has free when it is made, and again after it was full

    @property
    def length(self) -> int:
        """Tokens read: the position of the next one."""
        return self.first + self.path.shape[-1]

    def select(self, rows: Tensor) -> None:
        """rows: (B',) which of the B sequences each new one continues, within its own group."""
        K = self.rows // self.groups
        parents = rows.view(self.groups, -1) % K
        if K == 1:
            self.path = self.path.expand(-1, parents.shape[1], -1)
        else:
            self.path = self.path.expand(self.groups, -1, -1).take_along_dim(parents[..., None], 1)
        self.rows = len(rows)

    def keep(self, rows: Tensor) -> None:
        """Make sequences rows, (B',) of the B, groups of their own; equally many of each context, in its order."""
        (_, K, n), S = self.path.shape, self.trees[0][0].shape[2]
        slots = self.path.expand(self.groups, -1, -1).flatten(0, 1)[rows] + (rows // K * S)[:, None]
        slots = F.pad(slots, (0, self.room))  # free slots hold copies of the first, which the mask hides
        self.trees = [
            [x.flatten(1, 2).index_select(1, slots.flatten()).unflatten(1, slots.shape) for x in tree]
            for tree in self.trees
        ]
        self.path = torch.arange(n, device=rows.device).view(1, 1, n)
        self.groups = self.rows = len(rows)
        self.used = n

    def _extend(self, H: int, t: int, like: Tensor) -> None:
        """Slots for t more tokens of every sequence, and what they may see.  like: of the same type and device."""
        (P, K, n), start = self.path.shape, self.used
        self.used += K * t
        if not self.trees:
            size = (H, self.groups, self.used + self.room, self.context[0][0].shape[2])
            self.trees = [[x.new_zeros(size) for x in context] for context in self.context]
        elif (missing := self.used - self.trees[0][0].shape[2]) > 0:
            self.trees = [[F.pad(x, (0, 0, 0, missing + self.room)) for x in tree] for tree in self.trees]
        self.new, S = slice(start, self.used), self.trees[0][0].shape[2]
        new = torch.arange(start, self.used, device=like.device).view(K, t).expand(P, K, t)
        self.path = torch.cat([self.path, new], 2)
        visible = F.pad(causal_mask(t, like), (n, 0))
        mask = like.new_full((P, K, t, S), -torch.inf)
        mask.scatter_(3, self.path[:, :, None].expand(P, K, t, n + t), visible.expand(P, K, t, n + t))
        self.mask = mask.flatten(1, 2).repeat(1 if P == 1 else H, 1, 1)  # (1 or H * G, K * t, S)

    def attend(self, model: GPT, layer: int, qkv: Tensor) -> Tensor:
        """Attention of new tokens to their context, their path and, causally, each other; they are appended."""
        H, (B, t, _) = model.config.n_head, qkv.shape
        if not self.trees and len(self.context) == layer:
            keys, values = (x.transpose(0, 1).flatten(0, 1) for x in heads(qkv, H)[1:])
            self.context.append((keys.to(longer(qkv.dtype)), values))
            self.first, self.groups, self.rows = t, B, B
            self.path = torch.empty(1, 1, 0, dtype=torch.long, device=qkv.device)
            return model.causal(layer, qkv)
        q, *new = qkv.view(B * t, 3, H, -1).permute(1, 2, 0, 3)  # (H, B * t, d_head) each
        q = q.to(longer(qkv.dtype)).contiguous()
        if layer == 0:
            self._extend(H, t, q)
        for whole, x in zip(self.trees[layer], new, strict=True):
            whole[:, :, self.new] = x.unflatten(1, (self.groups, -1))
        keys, values = (x.flatten(0, 1) for x in self.trees[layer])
        context_keys, context_values = self.context[layer]
        HE, L, d = context_keys.shape
        HG, S, _ = keys.shape
        scale = d**-0.5
        context = torch.baddbmm(self.mask[:1, :1, :1], q.view(HE, -1, d), context_keys.mT, beta=0, alpha=scale)
        own = torch.baddbmm(self.mask, q.view(HG, -1, d), keys.mT, alpha=scale)
        weights = torch.cat([context.view(H, B * t, L), own.view(H, B * t, S)], 2).softmax(2).to(qkv.dtype)
        y = torch.bmm(weights[..., :L].view(HE, -1, L), context_values).view(HG, -1, d)
        y.baddbmm_(weights[..., L:].view(HG, -1, S), values)
        return y.view(H, B * t, d).transpose(0, 1).reshape(B, t, H * d)


def read(model: GPT, ids: Tensor, cache: Cache) -> Tensor:
    """Feed ids (B, t) after what the cache holds -> logits (B, t, V); the cache then holds them too."""
    return model(ids, functools.partial(cache.attend, model), cache.length)
