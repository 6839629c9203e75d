"""A key-value cache for sequences that fork: a shared context and trees of tokens that grow on it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ttlib import model
from ttlib.model import heads


def longer(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: of the scores of attention."""
    return torch.promote_types(dtype, torch.float32)


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
        visible = F.pad(model.causal_mask(t, like), (n, 0))
        mask = like.new_full((P, K, t, S), -torch.inf)
        mask.scatter_(3, self.path[:, :, None].expand(P, K, t, n + t), visible.expand(P, K, t, n + t))
        self.mask = mask.flatten(1, 2).repeat(1 if P == 1 else H, 1, 1)  # (1 or H * G, K * t, S)

    def attend(self, model: model.GPT, layer: int, qkv: Tensor) -> Tensor:
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


def read(model: model.GPT, ids: Tensor, cache: Cache) -> Tensor:
    """Feed ids (B, t) after what the cache holds -> logits (B, t, V); the cache then holds them too."""
    return model(ids, functools.partial(cache.attend, model), cache.length)
