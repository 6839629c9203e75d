"""Floats to token ids and back (Section 3.1, Equation 1); the one owner of the order of tokens in a step."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """Tokens of one step, in the paper's order: N state dimensions, M action dimensions, r, R."""

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
        """Index of R, or -1 (no dimension has it) where there are no rewards."""
        return self.D - 1 if self.rewards else -1

    def names(self) -> list[str]:
        names = [f"s{i}" for i in range(self.N)] + [f"a{j}" for j in range(self.M)]
        return names + ["r", "R"] * self.rewards


@dataclass(frozen=True)
class Tokenizer:
    """Bins of every dimension of a step.  A token id is bin + V * dimension (Eq. 1, offset included).

    kind     "uniform" (Eq. 1) or "quantile" (equal counts, the later paper's).
    edges    (D, V + 1) float64, ascending.  A quantile dimension with fewer than V distinct bins is
             filled up with +inf: those bins have no members and are never targets.
    centres  (D, V) float64: what a bin decodes to.
    """

    transition: Transition
    V: int
    kind: str
    edges: Tensor
    centres: Tensor

    def __post_init__(self):
        if self.kind not in ("uniform", "quantile"):
            raise ValueError(f"bins of kind {self.kind!r}; expected 'uniform' or 'quantile'")
        want = (self.transition.D, self.V + 1)
        if tuple(self.edges.shape) != want:
            raise ValueError(f"bin edges of shape {tuple(self.edges.shape)}; expected (D, V + 1) = {want}")

    @property
    def low(self) -> Tensor:
        return self.edges[:, 0]

    @property
    def high(self) -> Tensor:
        """(D,) upper end of the last bin that has members."""
        return self.edges.masked_fill(self.edges.isinf(), -torch.inf).amax(1)

    @property
    def width(self) -> Tensor:
        """(D, V) bin widths; inf for the empty bins of a quantile dimension (density zero)."""
        return self.edges.diff(dim=1).nan_to_num(nan=torch.inf, posinf=torch.inf)

    @property
    def offset(self) -> Tensor:
        """(D,) what turns a bin into an id."""
        return self.V * torch.arange(self.transition.D, device=self.edges.device)

    @property
    def missing(self) -> Tensor:
        """(D,) id of "not known" of each dimension, after all others (only state dimensions are ever hidden)."""
        return self.V * self.transition.D + torch.arange(self.transition.D, device=self.edges.device)

    def to(self, device) -> "Tokenizer":
        edges, centres = self.edges.to(device), self.centres.to(device)
        return Tokenizer(self.transition, self.V, self.kind, edges, centres)

    def bins(self, x: Tensor, dims: slice | int) -> Tensor:
        """x: (..., n) float for the n dimensions selected -> (..., n) int64 bins in [0, V).

        Values outside the fitted range go to the first or last bin; `out_of_range` counts them.
        Raises ValueError on NaN or infinity, naming dimension and row.
        """
        dims = slice(dims, dims + 1) if isinstance(dims, int) else dims
        x = x.to(torch.float64)
        if not (finite := torch.isfinite(x)).all():
            bad = tuple((~finite).nonzero()[0].tolist())
            name = self.transition.names()[dims][bad[-1]]
            raise ValueError(
                f"cannot tokenize {x[bad].item()} in dimension {name}, row {bad[:-1]}: "
                "tokens are bins of finite numbers; remove or repair these rows"
            )
        return self.bins_of_finite(x, dims)

    def bins_of_finite(self, x: Tensor, dims: slice) -> Tensor:
        """`bins` of numbers known to be finite, without waiting for a device to look at them."""
        if self.kind == "quantile":
            edges = self.edges[dims]
            columns = x.reshape(-1, x.shape[-1]).T.contiguous()
            found = torch.searchsorted(edges[:, 1:].contiguous(), columns, right=True)
            last = edges[:, 1:].isfinite().sum(1, keepdim=True) - 1
            return found.minimum(last).T.reshape(x.shape)
        low, high = self.edges[dims, 0], self.edges[dims, -1]
        return (self.V * (x - low) / (high - low)).floor().clamp(0, self.V - 1).long()  # Eq. 1

    def encode(self, x: Tensor, dims: slice | int) -> Tensor:
        """Eq. 1, offset included.  x: (..., n) float -> (..., n) int64 ids; raises as `bins` does."""
        dims = slice(dims, dims + 1) if isinstance(dims, int) else dims
        return self.bins(x, dims) + self.offset[dims]

    def decode(self, ids: Tensor) -> Tensor:
        """ids: any shape, offset included -> same shape float64, the centres of their bins."""
        return self.centres.flatten()[ids]

    def expected(self, log_p: Tensor, dim: int) -> Tensor:
        """Mean of a dimension under log-probabilities of its bins.  (..., V) -> (...)."""
        return log_p.exp() @ self.centres[dim].to(log_p.dtype)

    def out_of_range(self, x: Tensor, dims: slice) -> Tensor:
        """x: (..., n) -> (n,) share of values outside [low, high) of their dimension."""
        outside = (x < self.low[dims]) | (x >= self.high[dims])
        return outside.reshape(-1, outside.shape[-1]).double().mean(0)


def fit(steps: Tensor, transition: Transition, V: int = 100, kind: str = "uniform") -> Tokenizer:
    """Bins from training data.  steps: (n, D) float, one row a step, columns in `transition`'s order.

    V = 100 is ours; the paper does not state it.  V is at most 256: bins are stored as bytes.
    Raises ValueError on an empty or non-finite table, a wrong width or an unknown kind.
    """
    if steps.ndim != 2 or steps.shape[1] != transition.D or not len(steps):
        raise ValueError(f"steps of shape {tuple(steps.shape)}; expected (n > 0, D = {transition.D})")
    return fit_columns(steps.T, transition, V, kind)


def fit_columns(
    columns: Iterable[Tensor], transition: Transition, V: int, kind: str, V_rest: int | None = None
) -> Tokenizer:
    """`fit` from the values of each dimension in turn, D times (n,) float: they need not be in memory together.

    V_rest: bins of what is no state dimension, at most V; of quantile bins alone.
    """
    if not 2 <= V <= 256:
        raise ValueError(f"V = {V} bins a dimension; expected 2 to 256 (bins are stored as bytes)")
    if V_rest is not None and not (kind == "quantile" and 2 <= V_rest <= V):
        raise ValueError(f"V_rest = {V_rest} of {V} {kind} bins; expected quantile bins and 2 to V of them")
    names, counts = transition.names(), [V] * transition.N + [V_rest or V] * (transition.D - transition.N)
    edges = [_edges(x, name, count, kind) for x, name, count in zip(columns, names, counts, strict=True)]
    edges = torch.stack([F.pad(x, (0, V + 1 - len(x)), value=torch.inf) for x in edges])
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    last = edges.masked_fill(edges.isinf(), -torch.inf).amax(1, keepdim=True)
    centres = torch.where(centres.isfinite(), centres, last)  # empty bins: any finite value will do
    return Tokenizer(transition, V, kind, edges, centres)


def _edges(x: Tensor, name: str, V: int, kind: str) -> Tensor:
    """(n,) values of one dimension -> V + 1 edges, or fewer where quantiles repeat, float64."""
    low, top = x.min().double(), x.max().double()
    if not (low.isfinite() and top.isfinite()):  # a NaN is both
        row = int((~x.isfinite()).nonzero()[0])
        raise ValueError(
            f"non-finite value {x[row].item()} in dimension {name}, row {row}: remove or repair it before fitting bins"
        )
    # [low, high) must hold the maximum; a constant dimension gets width 1 instead of dividing by zero.
    high = torch.where(top > low, top + 1e-6 * (top - low), low + 1)
    if kind == "quantile":
        return _quantile_edges(x, low, high, V)
    return low + (high - low) * torch.linspace(0, 1, V + 1, dtype=torch.float64)


def _quantile_edges(x: Tensor, low: Tensor, high: Tensor, V: int) -> Tensor:
    """(n,) values of one dimension -> at most V + 1 edges of equal counts, repeats merged."""
    ordered = torch.from_numpy(np.sort(x.numpy()))  # torch's sort makes indices too: three times the memory
    inner = ordered[(torch.arange(1, V) * len(x)) // V].double()
    edges = torch.cat([low[None], inner, high[None]]).unique()
    # An edge one rounding error above its neighbour would give a bin whose centre is its own edge.
    smallest = 1e-9 * (high - low)
    edges = edges[torch.cat([torch.ones(1, dtype=torch.bool), edges.diff() > smallest])]
    edges[-1] = high
    return edges
