"""The Trajectory Transformer: a GPT over token ids (Section 3.1, Appendix A) with a key-value cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttlib import cpu
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
    missing: bool = False  # states may be hidden: ids V*D + i stand for "state dimension i unknown"
    smooth: float = 0.0  # initial embeddings of a dimension's bins are alike over this many bins

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


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, everywhere = config.d_model, config.dropout_where == "everywhere"
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.drop_residual = cpu.Dropout(config.dropout if everywhere else 0.0)
        self.drop_end = cpu.Dropout(0.0 if everywhere else config.dropout)

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
        self.drop = cpu.Dropout(config.dropout if config.dropout_where == "everywhere" else 0.0)
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


def heads(qkv: Tensor, n_head: int) -> list[Tensor]:
    """(B, t, 3 * d_model) -> q, k and v, (B, H, t, d_head) each."""
    return [x.unflatten(2, (n_head, -1)).transpose(1, 2) for x in qkv.chunk(3, 2)]


def causal_mask(t: int, like: Tensor) -> Tensor:
    """(t, t), -inf above the diagonal: token i sees itself and what came before."""
    return torch.full((t, t), -torch.inf, dtype=like.dtype, device=like.device).triu(1)
