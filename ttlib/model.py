"""The Trajectory Transformer: a GPT over token ids (Section 3.1, Appendix A) with a key-value cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttlib import results
from ttlib.tokenizer import Transition


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


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v (B, H, t, d_head) -> (B, H, t, d_head)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, everywhere = config.d_model, config.dropout_where == "everywhere"
        self.n_head = config.n_head
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.drop_residual = nn.Dropout(config.dropout if everywhere else 0.0)
        self.drop_end = nn.Dropout(0.0 if everywhere else config.dropout)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        B, t, d = x.shape
        # Departs from the paper: LayerNorm stands before each sublayer, not after it as in GPT.
        q, k, v = self.qkv(self.norm_attention(x)).view(B, t, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        y = attend(layer, q, k, v).transpose(1, 2).reshape(B, t, d)
        x = x + self.drop_residual(self.out(y))
        x = x + self.drop_residual(self.down(F.gelu(self.up(self.norm_mlp(x)))))
        return self.drop_end(x)


class GPT(nn.Module):
    """Logits over the V bins of the next token; which dimension they are of follows from the position."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        ids = config.V * config.transition.D + config.transition.N * config.missing
        self.token = nn.Embedding(ids, config.d_model)
        self.position = nn.Embedding(config.max_tokens, config.d_model)
        self.drop = nn.Dropout(config.dropout if config.dropout_where == "everywhere" else 0.0)
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
        position = torch.arange(start, start + ids.shape[1], device=ids.device)
        x = self.drop(self.token(self.model_input(ids)) + self.position(position))
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend or self.causal)
        return self.head(self.norm(x))

    def causal(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        drop = self.config.dropout if self.training and self.config.dropout_where == "everywhere" else 0.0
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)

    @torch.inference_mode()
    def attention_maps(self, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """ids: (B, L) -> per layer the weights (B, H, L, L), values and outputs (B, H, L, d_head)."""
        maps = []

        def attend(layer, q, k, v):
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + causal_mask(q.shape[2], q)).softmax(-1)
            maps.append((weights, v, weights @ v))
            return maps[-1][2]

        self(ids, attend)
        return maps


def causal_mask(t: int, like: Tensor) -> Tensor:
    """(t, t), -inf above the diagonal: token i sees itself and what came before."""
    return torch.full((t, t), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


@dataclass
class Cache:
    """Keys and values of tokens already read.

    Planning branches: the context is shared by all plans of an environment, a plan's history by its
    candidates.  So a cache is a list of frozen segments, each a list over layers of (keys, values) of
    shape (G, H, S, d_head) where G divides the number of rows B and every B / G successive rows share a
    group, and one live segment with a row of its own for each of the B rows.
    """

    frozen: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    live: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens read: the position of the next one."""
        segments = self.frozen + ([self.live] if self.live else [])
        return sum(segment[0][0].shape[2] for segment in segments)

    def freeze(self) -> None:
        """Close the live segment: from now on each of its rows may have several successors."""
        if self.live:
            self.frozen.append(self.live)
            self.live = []

    def select(self, rows: Tensor) -> None:
        """rows: (B',) which live row each new row continues, within its own group of the frozen segments."""
        self.live = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.live]

    def merge(self, rows: Tensor) -> None:
        """Keep the live rows given, (B',), and append each to the last frozen segment of the group it is in."""
        groups = rows // (self.live[0][0].shape[0] // self.frozen[-1][0][0].shape[0])
        self.select(rows)
        history = [(k.index_select(0, groups), v.index_select(0, groups)) for k, v in self.frozen[-1]]
        self.frozen[-1] = [
            (torch.cat([hk, k], 2), torch.cat([hv, v], 2)) for (hk, hv), (k, v) in zip(history, self.live, strict=True)
        ]
        self.live = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of new tokens to all cached ones and, causally, to each other; they are appended."""
        t = q.shape[2]
        if not self.frozen and len(self.live) == layer:
            self.live.append((k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if len(self.live) > layer:
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.live[layer], (k, v), strict=True))
            self.live[layer] = (k, v)
        else:
            self.live.append((k, v))
        q = q / math.sqrt(q.shape[-1])
        own = q @ k.transpose(-1, -2)
        if t > 1:
            own[..., -t:] += causal_mask(t, q)
        segments = [segment[layer] for segment in self.frozen]
        scores = [_by_group(q, keys.transpose(-1, -2)) for keys, _ in segments] + [own]
        weights = torch.cat(scores, -1).softmax(-1).split([s.shape[-1] for s in scores], -1)
        out = weights[-1] @ v
        for w, (_, values) in zip(weights, segments, strict=False):
            out = out + _by_group(w, values)
        return out


def _by_group(x: Tensor, shared: Tensor) -> Tensor:
    """x: (B, H, t, n) @ shared: (G, H, n, m), B / G successive rows using the same group -> (B, H, t, m)."""
    (B, H, t, n), G = x.shape, shared.shape[0]
    if B == G:
        return x @ shared
    grouped = x.view(G, B // G, H, t, n).transpose(1, 2).reshape(G, H, B // G * t, n)
    return (grouped @ shared).view(G, H, B // G, t, -1).transpose(1, 2).reshape(B, H, t, -1)


def read(model: GPT, ids: Tensor, cache: Cache) -> Tensor:
    """Feed ids (B, t) after what the cache holds -> logits (B, t, V); the cache then holds them too."""
    return model(ids, cache.attend, start=cache.length)
