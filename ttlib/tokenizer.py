"""Turn numbers into token ids and back (Section 3.1, Equation 1).

This file owns the order of tokens in a step: no other file computes which dimension
a position or an id belongs to.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """The tokens of one step, in the paper's order: N states, M actions, r, R."""

    N: int
    M: int
    rewards: bool = True  # four rooms has none

    @property
    def D(self) -> int:
        return self.N + self.M + 2 * self.rewards

    @property
    def state(self) -> slice:
        return slice(0, self.N)

    @property
    def action(self) -> slice:
        return slice(self.N, self.N + self.M)

    @property
    def reward(self) -> int:
        return self.N + self.M

    @property
    def reward_to_go(self) -> int:
        """The index of R; -1, which no dimension has, without rewards."""
        return self.D - 1 if self.rewards else -1

    def names(self) -> list[str]:
        names = [f"s{i}" for i in range(self.N)] + [f"a{j}" for j in range(self.M)]
        return names + ["r", "R"] * self.rewards

    def first_id(self, V: int, dim: int) -> int:
        """Return the id of bin 0 of a dimension with V bins (Eq. 1)."""
        return V * dim

    def dimension(self, position: int, prefix: int = 0) -> int:
        """Return the dimension of a position after `prefix` goal tokens."""
        return position if position < prefix else (position - prefix) % self.D


@dataclass(frozen=True)
class Tokenizer:
    """Bins of each dimension of a step.  A token id is bin + V * dimension (Eq. 1).

    Quantile dimensions with fewer than V bins have empty ones, with edges +inf.
    """

    transition: Transition
    V: int
    kind: str  # "uniform" (Eq. 1), or "quantile": equal counts (the later code)
    edges: Tensor  # (D, V + 1) float64, ascending
    centres: Tensor  # (D, V) float64: the number that a bin decodes to

    def __post_init__(self):
        if self.kind not in ("uniform", "quantile"):
            raise ValueError(f"kind {self.kind!r}; expected uniform or quantile")
        shape, expected = tuple(self.edges.shape), (self.transition.D, self.V + 1)
        if shape != expected:
            raise ValueError(f"bin edges {shape}; expected (D, V + 1) = {expected}")

    @property
    def low(self) -> Tensor:
        return self.edges[:, 0]

    @property
    def high(self) -> Tensor:
        """The upper end of the last bin that is not empty.  (D,)"""
        return self.edges.masked_fill(self.edges.isinf(), -torch.inf).amax(1)

    @property
    def width(self) -> Tensor:
        """The widths of bins, (D, V); infinite where a bin is empty."""
        return self.edges.diff(dim=1).nan_to_num(nan=torch.inf, posinf=torch.inf)

    @property
    def empty(self) -> Tensor:
        """True for bins without members, which no token can have.  (D, V) bool"""
        return self.edges[:, 1:].isinf()

    @property
    def offset(self) -> Tensor:
        """The number that turns a bin into an id, for each dimension.  (D,)"""
        return self.V * torch.arange(self.transition.D, device=self.edges.device)

    @property
    def blank(self) -> int:
        """The id that is read in place of every reward-to-go: bin 0 of R."""
        return self.transition.first_id(self.V, self.transition.reward_to_go)

    @property
    def mask_ids(self) -> Tensor:
        """The ids that stand for a masked value, one for each dimension.  (D,)"""
        return self.V * self.transition.D + self.offset // self.V

    def to(self, device) -> "Tokenizer":
        edges, centres = self.edges.to(device), self.centres.to(device)
        return Tokenizer(self.transition, self.V, self.kind, edges, centres)

    def bins(self, x: Tensor, dims: slice) -> Tensor:
        """Return bins of the dimensions `dims`, (..., n) float -> (..., n) int64.

        Values outside the fitted range go to the first or the last bin.  Raises
        ValueError on NaN or infinity, naming dimension and row.
        """
        x = x.to(torch.float64)
        if not (finite := torch.isfinite(x)).all():
            bad = tuple((~finite).nonzero()[0].tolist())
            name = self.transition.names()[dims][bad[-1]]
            raise ValueError(
                f"cannot tokenize {x[bad].item()} in dimension {name}, row "
                f"{bad[:-1]}: expected finite numbers; remove or repair these rows"
            )
        return self.bins_of_finite(x, dims)

    def bins_of_finite(self, x: Tensor, dims: slice) -> Tensor:
        """Return `bins`, unchecked: a GPU waits for checks.  (..., n) -> same"""
        if self.kind == "quantile":
            upper = self.edges[dims, 1:].contiguous()
            columns = x.reshape(-1, x.shape[-1]).T.contiguous()
            bins = torch.searchsorted(upper, columns, right=True)
            last = upper.isfinite().sum(1, keepdim=True) - 1
            return bins.minimum(last).T.reshape(x.shape)
        low, high = self.edges[dims, 0], self.edges[dims, -1]
        bins = (self.V * (x - low) / (high - low)).floor()  # Eq. 1
        return bins.clamp(0, self.V - 1).long()

    def encode(self, x: Tensor, dims: slice) -> Tensor:
        """Return token ids (Eq. 1), as `bins`.  (..., n) float -> (..., n)"""
        return self.bins(x, dims) + self.offset[dims]

    def decode(self, ids: Tensor) -> Tensor:
        """Return the centres of the bins of ids.  Any shape -> same, float64"""
        return self.centres.flatten()[ids]

    def expected(self, log_p: Tensor, dim: int) -> Tensor:
        """Return a dimension's mean under log-probabilities.  (..., V) -> (...)"""
        return log_p.exp() @ self.centres[dim].to(log_p.dtype)


def fit(
    columns: Iterable[Tensor], transition: Transition, V: int = 100, kind="uniform"
) -> Tokenizer:
    """Fit bins to training data, which need not be in memory at once.

    columns: the values of each dimension in turn, D times (n,) float; a table
    (n, D) is given as `table.T`.  V = 100 is ours, the paper does not state it.
    Raises ValueError on values, numbers or a kind that are impossible.
    """
    if not 2 <= V <= 256:
        raise ValueError(f"V = {V} bins; expected 2 to 256, since bins are bytes")
    names, columns = transition.names(), iter(columns)
    edges = [_edges(x, name, V, kind) for name, x in zip(names, columns)]
    count = len(edges) + len(list(columns))
    if count != transition.D:
        raise ValueError(f"{count} columns; expected D = {transition.D}: table.T")
    pad = lambda x: F.pad(x, (0, V + 1 - len(x)), value=torch.inf)  # noqa: E731
    edges = torch.stack([pad(x) for x in edges])
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    last = edges.masked_fill(edges.isinf(), -torch.inf).amax(1, keepdim=True)
    centres = torch.where(centres.isfinite(), centres, last)  # of empty bins
    return Tokenizer(transition, V, kind, edges, centres)


def _edges(x: Tensor, name: str, V: int, kind: str) -> Tensor:
    """Return V + 1 edges for values (n,), or fewer where quantiles repeat."""
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values of {name}: {tuple(x.shape)}; expected (n > 0,)")
    low, top = x.min().double(), x.max().double()
    if not (low.isfinite() and top.isfinite()):  # both are NaN where one value is
        row = int((~x.isfinite()).nonzero()[0])
        raise ValueError(
            f"non-finite value {x[row].item()} in dimension {name}, row {row}: "
            "remove or repair it before fitting bins"
        )
    # [low, high) must hold the maximum; a constant dimension gets width 1.
    high = torch.where(top > low, top + 1e-6 * (top - low), low + 1)
    if kind == "quantile":
        return _quantile_edges(x, low, high, V)
    return low + (high - low) * torch.linspace(0, 1, V + 1, dtype=torch.float64)


def _quantile_edges(x: Tensor, low: Tensor, high: Tensor, V: int) -> Tensor:
    """Return at most V + 1 edges with equal counts of (n,) values between them."""
    ordered = torch.from_numpy(np.sort(x.numpy()))  # torch's sort makes indices too
    inner = ordered[(torch.arange(1, V) * len(x)) // V].double()
    edges = torch.cat([low[None], inner, high[None]]).unique()
    # An edge a rounding error above the last would be the centre of its own bin.
    distinct = edges.diff() > 1e-9 * (high - low)
    edges = edges[torch.cat([torch.ones(1, dtype=torch.bool), distinct])]
    edges[-1] = high
    return edges
