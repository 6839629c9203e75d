"""A key-value cache for sequences that fork: a shared context and trees of tokens.

As in SpecInfer (Miao et al. 2024) and Hydragen (Juravsky et al. 2024), a context is
stored once, and its many continuations, which share their first tokens, as a tree.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ttlib.model import GPT, causal_mask, heads


class Cache:
    """Keys and values of the tokens that were read.

    The first tokens read are the contexts of E sequences.  Later tokens grow as
    trees, one for each of G groups of K sequences; G / E groups share a context.
    A tree has S slots, and `ancestors` (1 or G, K, n) names those of each
    sequence's n tokens (1: groups are alike).  So sequences fork without moving a
    key: they attend to all slots of their tree, and a mask hides those of others.
    """

    def __init__(self, spare_slots: int = 16):
        # Keys and values by layer: (H * E, L, d_head), and (H, G, S, d_head)
        self.context: list[tuple[Tensor, Tensor]] = []
        self.trees: list[list[Tensor]] = []
        self.ancestors = torch.empty(0)
        self.context_length = self.groups = self.sequences = self.used = 0
        self.spare_slots = spare_slots
        self.new = slice(0, 0)  # the slots of the tokens that are being read
        self.mask = torch.empty(0)  # what these may see, (1 or H * G, K * t, S)

    @property
    def length(self) -> int:
        """The number of tokens read, which is the position of the next one."""
        return self.context_length + self.ancestors.shape[-1]

    def reserve(self, slots: int) -> None:
        """Make room for this many tokens whenever a tree is made or is full."""
        self.spare_slots = slots

    def reorder(self, rows: Tensor) -> None:
        """Let new sequences continue old ones of their own group.  rows: (B',)"""
        K = self.sequences // self.groups
        parents = rows.view(self.groups, -1) % K
        if K == 1:
            self.ancestors = self.ancestors.expand(-1, parents.shape[1], -1)
        else:
            every = self.ancestors.expand(self.groups, -1, -1)
            self.ancestors = every.take_along_dim(parents[..., None], 1)
        self.sequences = len(rows)

    def regroup(self, rows: Tensor) -> None:
        """Make the sequences `rows` (B',) groups of one, without the others'
        tokens.

        They are equally many of each context, in the order of contexts.
        """
        (_, K, n), S = self.ancestors.shape, self.trees[0][0].shape[2]
        slots = self.ancestors.expand(self.groups, -1, -1).flatten(0, 1)[rows]
        slots = slots + (rows // K * S)[:, None]
        # Spare slots hold copies of the first slot, which the mask hides.
        slots = F.pad(slots, (0, self.spare_slots))

        def gather(x):
            x = x.flatten(1, 2).index_select(1, slots.flatten())
            return x.unflatten(1, slots.shape)

        self.trees = [[gather(x) for x in tree] for tree in self.trees]
        self.ancestors = torch.arange(n, device=rows.device).view(1, 1, n)
        self.groups = self.sequences = len(rows)
        self.used = n

    def _extend(self, H: int, t: int, like: Tensor) -> None:
        """Take slots for t more tokens of each sequence; mask what they may see, as
        a tensor of the type and device of `like`."""
        (P, K, n), start = self.ancestors.shape, self.used
        self.used += K * t
        if not self.trees:
            d = self.context[0][0].shape[2]
            size = (H, self.groups, self.used + self.spare_slots, d)
            new = [[x.new_zeros(size) for x in pair] for pair in self.context]
            self.trees = new
        elif (lacking := self.used - self.trees[0][0].shape[2]) > 0:
            pad = (0, 0, 0, lacking + self.spare_slots)
            self.trees = [[F.pad(x, pad) for x in tree] for tree in self.trees]
        self.new, S = slice(start, self.used), self.trees[0][0].shape[2]
        new = torch.arange(start, self.used, device=like.device).view(K, t)
        self.ancestors = torch.cat([self.ancestors, new.expand(P, K, t)], 2)
        visible = F.pad(causal_mask(t, like), (n, 0)).expand(P, K, t, n + t)
        mask = like.new_full((P, K, t, S), -torch.inf)
        mask.scatter_(3, self.ancestors[:, :, None].expand(P, K, t, n + t), visible)
        self.mask = mask.flatten(1, 2).repeat(1 if P == 1 else H, 1, 1)

    def attend(self, model: GPT, layer: int, qkv: Tensor) -> Tensor:
        """Let new tokens attend to their context, their ancestors and each other.

        (B, t, 3 * d_model) -> (B, t, d_model).  The new tokens are stored.
        """
        H, (B, t, _) = model.config.n_head, qkv.shape
        if not self.trees and len(self.context) == layer:
            _, *new = heads(qkv, H)
            keys, values = (x.transpose(0, 1).flatten(0, 1) for x in new)
            self.context.append((keys.contiguous(), values))
            self.context_length, self.groups, self.sequences = t, B, B
            self.ancestors = torch.empty(1, 1, 0, device=qkv.device).long()
            return model.causal(layer, qkv)
        # (H, B * t, d_head) each
        q, *new = qkv.reshape(B * t, 3, H, -1).permute(1, 2, 0, 3)
        q = q.contiguous()
        if layer == 0:
            self._extend(H, t, q)
        for stored, x in zip(self.trees[layer], new, strict=True):
            stored[:, :, self.new] = x.unflatten(1, (self.groups, -1))
        y = self._weighted_values(q, layer)
        return y.view(H, B * t, -1).transpose(0, 1).reshape(B, t, -1)

    def _weighted_values(self, q: Tensor, layer: int) -> Tensor:
        """Return the attention output for queries q (H, B * t, d_head)."""
        keys, values = (x.flatten(0, 1) for x in self.trees[layer])
        context_keys, context_values = self.context[layer]
        (HE, L, d), (HG, S, _), H = context_keys.shape, keys.shape, len(q)
        scale, rows = d**-0.5, q.shape[1]
        zero = self.mask[:1, :1, :1]  # multiplied by beta=0
        context = torch.baddbmm(
            zero, q.view(HE, -1, d), context_keys.mT, beta=0, alpha=scale
        )
        own = torch.baddbmm(self.mask, q.view(HG, -1, d), keys.mT, alpha=scale)
        scores = torch.cat([context.view(H, rows, L), own.view(H, rows, S)], 2)
        weights = scores.softmax(2)
        y = torch.bmm(weights[..., :L].view(HE, -1, L), context_values)
        return y.view(HG, -1, d).baddbmm_(weights[..., L:].view(HG, -1, S), values)


def decode(model: GPT, ids: Tensor, cache: Cache) -> Tensor:
    """Read ids (B, t) after the tokens in the cache -> logits (B, t, V).

    The cache then holds the new tokens too.  The first call is the prefill.
    """
    return model(ids, functools.partial(cache.attend, model), cache.length)
