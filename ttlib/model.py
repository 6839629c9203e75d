"""The Trajectory Transformer: a GPT over token ids (Section 3.1, Appendix A)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttlib.tokenizer import Transition


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model: `T` transitions of D tokens follow `prefix` goal tokens."""

    transition: Transition
    T: int
    V: int = 100  # the paper does not state it
    n_layer: int = 4  # Appendix A, with the three below
    n_head: int = 6
    d_model: int = 192
    dropout: float = 0.1
    dropout_where: str = "block"  # at its end; or "everywhere", as in GPT
    prefix: int = 0
    masked: bool = False  # N more ids stand for masked state dimensions
    embedding_length_scale: float = 0.0  # bins whose initial embeddings are alike

    @property
    def max_tokens(self) -> int:
        return self.prefix + self.T * self.transition.D

    def __post_init__(self):
        if (n_head := self.n_head) < 1 or self.d_model % n_head:
            raise ValueError(f"d_model={self.d_model} is no multiple of {n_head=}")
        if (where := self.dropout_where) not in ("block", "everywhere"):
            raise ValueError(f"dropout_where {where!r}; expected block, everywhere")
        if self.masked and self.V > 255:
            raise ValueError(f"V={self.V}; expected at most 255: 255 marks masks")
        if min(self.T, self.n_layer) < 1 or not 0 <= self.dropout < 1:
            found = f"T={self.T}, n_layer={self.n_layer}, dropout={self.dropout}"
            raise ValueError(f"{found}; expected T, n_layer >= 1, 0 <= dropout < 1")
        if (scale := self.embedding_length_scale) < 0:
            raise ValueError(f"embedding_length_scale={scale}; expected at least 0")


# Attention of a layer: its q, k and v (B, t, 3 * d_model) -> (B, t, d_model).
Attend = Callable[[int, Tensor], Tensor]


class Block(nn.Module):
    """Attention and an MLP, each with a residual connection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, everywhere = config.d_model, config.dropout_where == "everywhere"
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.drop_residual = nn.Dropout(config.dropout if everywhere else 0.0)
        self.drop_end = nn.Dropout(0.0 if everywhere else config.dropout)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        """Return the residual stream after the block.  (B, t, d_model) -> same"""
        # Departs from the paper: LayerNorm stands before each sublayer, not after
        # it as in GPT.
        y = self.out(attend(layer, self.qkv(self.norm_attention(x))))
        x = x + self.drop_residual(y)
        x = x + self.drop_residual(self.down(F.gelu(self.up(self.norm_mlp(x)))))
        return self.drop_end(x)


class GPT(nn.Module):
    """Token ids (B, L) -> logits over the V bins of the next token (B, L, V).

    Which dimension the next token belongs to follows from its position.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        transition, d = config.transition, config.d_model
        ids = transition.first_id(config.V, transition.D)
        ids += transition.N * config.masked
        self.token = nn.Embedding(ids, d)
        self.position = nn.Embedding(config.max_tokens, d)
        everywhere = config.dropout_where == "everywhere"
        self.drop = nn.Dropout(config.dropout if everywhere else 0.0)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.V)
        self._initialise()

    def _initialise(self) -> None:
        """Draw initial weights as GPT-2 does."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Projections that end on the residual stream shrink with depth.
                ends = name.endswith(("out.weight", "down.weight"))
                depth = math.sqrt(2 * self.config.n_layer) if ends else 1
                nn.init.normal_(parameter, std=0.02 / depth)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.config.embedding_length_scale:
            self._initialise_smoothly()

    @torch.no_grad()
    def _initialise_smoothly(self) -> None:
        """Draw channels as Gaussian processes over bins (Rahimi and Recht 2007)."""
        # Departs from the paper: initial embeddings of neighbouring bins may be
        # alike, far lower loss per minute.
        D, V, d = self.config.transition.D, self.config.V, self.config.d_model
        frequency = torch.randn(D, 1, d) / self.config.embedding_length_scale
        phase = torch.arange(V)[:, None] * frequency
        phase = phase + 2 * math.pi * torch.rand(D, 1, d)
        self.token.weight[: V * D] = 0.3 * math.sqrt(2) * phase.cos().flatten(0, 1)

    def model_input(self, ids: Tensor) -> Tensor:
        """Put bin 0 in place of every reward-to-go.  Any shape -> the same"""
        transition, V = self.config.transition, self.config.V
        if not transition.rewards:
            return ids
        # Departs from the paper: reward-to-go is a target, never an input (its true
        # value is unknown while acting).
        blank = transition.first_id(V, transition.reward_to_go)  # R's ids are last
        if self.config.masked:
            masks = transition.first_id(V, transition.D)
            return ids.where((ids < blank) | (ids >= masks), blank)
        return ids.clamp(max=blank)

    def forward(self, ids: Tensor, attend: Attend | None = None, start=0) -> Tensor:
        """Return logits (B, L, V) for ids (B, L) at positions start, start + 1, ...

        Raises ValueError where the tokens do not fit the window.
        """
        if (end := start + ids.shape[1]) > self.config.max_tokens:
            raise ValueError(
                f"{start} + {ids.shape[1]} tokens do not fit the window of "
                f"{self.config.max_tokens}: plan less far, or train a longer window"
            )
        x = self.token(self.model_input(ids)) + self.position.weight[start:end]
        x = self.drop(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend or self.causal)
        return self.head(self.norm(x))

    def causal(self, layer: int, qkv: Tensor) -> Tensor:
        """Attend to earlier tokens.  (B, t, 3 * d_model) -> (B, t, d_model)"""
        q, k, v = heads(qkv, self.config.n_head)
        drop = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        return y.transpose(1, 2).flatten(2)


def heads(qkv: Tensor, n_head: int) -> list[Tensor]:
    """Split (B, t, 3 * d_model) into q, k and v, (B, H, t, d_head) each."""
    return [x.unflatten(2, (n_head, -1)).transpose(1, 2) for x in qkv.chunk(3, 2)]


def causal_mask(t: int, like: Tensor) -> Tensor:
    """Return (T, T) for T = t: 0, and -inf above the diagonal."""
    mask = torch.full((t, t), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu(1)


def token_nats(model: GPT, ids: Tensor, attend: Attend | None = None) -> Tensor:
    """Return -log P(token | the tokens before it) in nats.  (B, L) -> (B, L - 1)"""
    bins = ids[:, 1:] % model.config.V
    # The last token is read too: kernels prefer even lengths.
    logits = model(ids, attend)[:, :-1].float()
    nats = F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none")
    return nats.view_as(bins)


def loss(model: GPT, ids: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of -log P per token (Section 3.1).  (B, L) twice -> ()"""
    weight = weight[:, 1:]
    return (token_nats(model, ids) * weight).sum() / weight.sum()
