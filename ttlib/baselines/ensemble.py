"""An ensemble of single-step Gaussian models (PETS, Chua et al. 2018), the comparison in Figures 1 and 2."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import logsumexp, ndtr
from torch import Tensor, nn
from tqdm import tqdm

from ttlib.data import Episodes

MODES = ("ts1", "tsinf")  # of trajectory sampling, see `sample`
CHECK = 250  # updates between two checks on the held-out transitions


@dataclass(frozen=True)
class EnsembleConfig:
    """The members of an ensemble, their networks, and how they are fitted."""

    members: int = 5
    width: int = 200
    layers: int = 4  # hidden layers of each network
    mask_probability: float = 0.0  # of each state dimension at each step; above 0, the mask is an input too
    rewards: bool = False  # whether the reward is predicted too, as the last output
    lr: float = 1e-3
    batch: int = 256
    updates: int = 10_000
    patience: int = 8  # fitting stops after so many checks at which no member improved
    seed: int = 0

    def __post_init__(self):
        for name in ("members", "width", "layers", "batch", "updates", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least 1")
        if not 0 <= self.mask_probability < 1:
            raise ValueError(f"mask_probability={self.mask_probability}; expected at least 0 and below 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}; expected a positive number")


@dataclass(frozen=True)
class Transitions:
    """n steps with the states that follow them, in float64."""

    states: np.ndarray  # (n, N)
    actions: np.ndarray  # (n, M)
    next_states: np.ndarray  # (n, N)
    rewards: np.ndarray  # (n,)
    mask: np.ndarray | None = None  # (n, N) bool, true where a partially observed dataset does not show a state
    next_mask: np.ndarray | None = None  # (n, N) bool, the same of the next states

    def __len__(self) -> int:
        return len(self.states)


def transitions(data: Episodes) -> Transitions:
    """Return all transitions of episodes, without last steps.  Raises ValueError if no episode has two steps."""
    rows = np.setdiff1d(np.arange(data.starts[-1]), data.starts[1:] - 1)
    if not len(rows):
        raise ValueError(
            f"no transitions: all {len(data)} episodes have a single step; expected one with two steps at least"
        )
    states, actions = (np.asarray(x, np.float64) for x in (data.states, data.actions))
    masks = () if data.mask is None else (data.mask[rows], data.mask[rows + 1])
    return Transitions(states[rows], actions[rows], states[rows + 1], data.rewards[rows], *masks)


class Ensemble(nn.Module):
    """E Gaussian networks, its members, computed in one batch of matrix products.

    The outputs are the differences s' - s (s' itself where states are partially observed), and the reward if the config
    has one.
    """

    def __init__(self, N: int, M: int, config: EnsembleConfig):
        super().__init__()
        self.config, self.N, self.M = config, N, M
        rng = torch.Generator().manual_seed(config.seed)
        E, outputs = config.members, N + config.rewards
        sizes = [N + M + N * (config.mask_probability > 0), *[config.width] * config.layers, 2 * outputs]
        draw = lambda n, m: torch.randn(E, n, m, generator=rng) / n**0.5  # noqa: E731
        self.weights = nn.ParameterList(draw(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.biases = nn.ParameterList(torch.zeros(E, 1, m) for m in sizes[1:])
        # PETS shares these bounds between the members.  Here each member has its own, so that members are independent.
        self.max_log_var = nn.Parameter(torch.full((E, 1, outputs), 0.5))
        self.min_log_var = nn.Parameter(torch.full((E, 1, outputs), -10.0))
        for name, size in (("input", N + M), ("target", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{name}_std", torch.ones(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances (E, B, outputs) of standardised outputs for inputs (B, n) or (E, B, n)."""
        x = x.expand(self.config.members, *x.shape[-2:])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        mean, log_var = x.chunk(2, dim=-1)
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)  # PETS, Appendix A.1
        return mean, self.min_log_var + F.softplus(log_var - self.min_log_var)

    def standardise(self, data: Transitions) -> None:
        """Set the means and standard deviations of inputs and targets (1 for a constant) from the visible values."""
        target, weight = self._targets(data)
        visible = np.ones_like(data.states) if data.mask is None else ~data.mask
        known = np.hstack([visible, np.ones_like(data.actions)])
        for name, x, w in (("input", np.hstack([data.states, data.actions]), known), ("target", target, weight)):
            mean = np.average(x, axis=0, weights=w)
            std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
            getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
            getattr(self, f"{name}_std").copy_(torch.from_numpy(np.where(std > 1e-12 * (1 + abs(mean)), std, 1.0)))

    def inputs(self, states: np.ndarray, actions: np.ndarray, mask: np.ndarray | None = None) -> Tensor:
        """Return the inputs of the network, (B, n) float32: the state, its visibility if there is a mask, the action.

        Values are standardised in float64, and a masked value is 0.  Raises ValueError unless config and data agree.
        """
        if (mask is not None) != (self.config.mask_probability > 0):
            given = "no mask is given" if mask is None else "a mask is given"
            raise ValueError(
                f"{given}, but the ensemble's config has mask_probability={self.config.mask_probability}: "
                "use data of the kind that the ensemble was fitted to"
            )
        mean, std = self.input_mean.cpu().numpy(), self.input_std.cpu().numpy()
        x = (np.hstack([states, actions]) - mean) / std
        if mask is not None:
            x = np.hstack([np.where(mask, 0, x[:, : self.N]), ~mask, x[:, self.N :]])
        return torch.from_numpy(x).float().to(self.max_log_var.device)

    def tensors(self, data: Transitions) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs, the standardised targets and the weights of their loss, as `nats` takes them."""
        target, weight = self._targets(data)
        target = (target - self.target_mean.cpu().numpy()) / self.target_std.cpu().numpy()
        x = self.inputs(data.states, data.actions, data.mask)
        return x, torch.from_numpy(target).to(x), torch.from_numpy(weight).to(x)

    def _targets(self, data: Transitions) -> tuple[np.ndarray, np.ndarray]:
        """Return targets and the weights of their loss, (n, outputs) each, in raw units."""
        if data.next_mask is None:
            target, weight = data.next_states - data.states, np.ones_like(data.states)
        else:
            target, weight = data.next_states, 1.0 - data.next_mask
        if self.config.rewards:
            target = np.hstack([target, data.rewards[:, None]])
            weight = np.hstack([weight, np.ones((len(data), 1))])
        return target, weight

    @torch.no_grad()
    def predict(
        self, states: np.ndarray, actions: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and standard deviations of each member's Gaussian, (E, B, outputs) float64 each.

        Outputs are the next state, and the reward if the config has one, in raw units.  The mask (B, N) is bool.
        """
        mean, log_var = (x.double() for x in self(self.inputs(states, actions, mask)))
        mean = (self.target_mean + self.target_std * mean).cpu().numpy()
        if mask is None:
            mean[..., : self.N] += states
        return mean, (self.target_std * (log_var / 2).exp()).cpu().numpy()

    def log_density(self, data: Transitions) -> np.ndarray:
        """Return log p(s' | s, a) of each member in nats, (E, n), in raw units, masked dimensions included."""
        mean, std = (x[..., : self.N] for x in self.predict(data.states, data.actions, data.mask))
        return log_normal(data.next_states, mean, std).sum(-1)


def log_normal(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return log N(x; mean, std^2), elementwise."""
    return -0.5 * (((x - mean) / std) ** 2 + math.log(2 * math.pi)) - np.log(std)


def mixture(log_p: np.ndarray) -> np.ndarray:
    """Return the log-density (...) of the uniform mixture of members with log-densities (E, ...)."""
    return logsumexp(log_p, axis=0) - math.log(len(log_p))


def nats(ensemble: Ensemble, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of -log p over the visible targets of `Ensemble.tensors`, for each member: (E,)."""
    mean, log_var = ensemble(x)
    value = 0.5 * ((target - mean) ** 2 * (-log_var).exp() + log_var + math.log(2 * math.pi))
    return (value * weight).sum((1, 2)) / weight.sum((-2, -1))


def fit(
    training: Transitions, held_out: Transitions, config: EnsembleConfig, device: str | torch.device = "cpu"
) -> tuple[Ensemble, list[dict]]:
    """Fit an ensemble by maximum likelihood, each member on its own bootstrap sample of the data.

    Held-out nats are checked every CHECK updates.  Fitting stops when no member has improved for `patience` checks, and
    each member is returned as it was at its own best check.  Returns the ensemble and its curve: rows with update,
    training (nats per target on the batch) and held_out (those of each member).  Raises ValueError for data of
    different dimensions, and FloatingPointError if the nats are not finite.
    """
    sizes, held_sizes = ((data.states.shape[1], data.actions.shape[1]) for data in (training, held_out))
    if held_sizes != sizes:
        raise ValueError(
            f"held-out states and actions {held_out.states.shape}, {held_out.actions.shape} do not have the "
            f"dimensions of the training data, {training.states.shape}, {training.actions.shape}: use two parts of one "
            "dataset"
        )
    ensemble = Ensemble(*sizes, config).to(device)
    ensemble.standardise(training)
    best, curve, stale_checks = torch.full((config.members,), torch.inf), [], 0
    best_state = {name: x.clone() for name, x in ensemble.state_dict().items()}
    for row in _checks(ensemble, ensemble.tensors(training), ensemble.tensors(held_out)):
        curve.append(row)
        held_nats = torch.tensor(row["held_out"])
        better = held_nats < best
        for name, parameter in ensemble.named_parameters():
            best_state[name][better] = parameter.detach()[better]
        best = torch.minimum(best, held_nats)
        stale_checks = 0 if better.any() else stale_checks + 1
        if stale_checks >= config.patience:
            break
    ensemble.load_state_dict(best_state)
    return ensemble.eval(), curve


def _checks(ensemble: Ensemble, tensors: tuple[Tensor, ...], held_tensors: tuple[Tensor, ...]) -> Iterator[dict]:
    """Train the members in place, and yield a row of the curve every CHECK updates and after the last one."""
    config, n = ensemble.config, len(tensors[0])
    optimiser = torch.optim.Adam(ensemble.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.updates)  # down to 0
    rng = torch.Generator().manual_seed(config.seed)
    bootstrap = torch.randint(n, (config.members, n), generator=rng)
    bar = tqdm(range(1, config.updates + 1), "fit ensemble", unit="update", mininterval=2.0)
    for update in bar:
        rows = bootstrap.gather(1, torch.randint(n, (config.members, config.batch), generator=rng))
        value = nats(ensemble, *(x[rows.to(x.device)] for x in tensors))
        # PETS penalises the bounds.  The penalty is per target, as the loss is.
        penalty = 0.01 * (ensemble.max_log_var - ensemble.min_log_var).mean((1, 2))
        optimiser.zero_grad()
        (value + penalty).sum().backward()
        optimiser.step()
        schedule.step()
        if update % CHECK == 0 or update == config.updates:
            with torch.no_grad():
                held_out = nats(ensemble, *held_tensors).tolist()
            row = {"update": update, "training": value.detach().mean().item(), "held_out": held_out}
            if not np.isfinite([row["training"], *held_out]).all():
                raise FloatingPointError(
                    f"nats are {row} at update {update}; expected finite numbers: lower lr={config.lr}"
                )
            bar.set_postfix_str(f"held out {np.mean(held_out):.3f} nats per target")
            yield row


def sample(
    ensemble: Ensemble, policy: Callable[[np.ndarray, np.random.Generator], np.ndarray], start: np.ndarray, steps: int,
    mode: str, rng: np.random.Generator,
    visit: Callable[[int, np.ndarray, np.ndarray], None] = lambda t, mean, std: None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sample S trajectories by the trajectory sampling of PETS, with actions of a policy at the sampled states.

    start: (S, N).  mode: with "ts1" a trajectory draws a member at every step; with "tsinf" it has one member for all
    steps.  visit(t, means, standard deviations) is called with the predicted Gaussians of each step t = 1, 2, ...,
    (K, S, N) each: those of all members for ts1, and of the trajectory's member for tsinf.  Where states are partially
    observed, masks are drawn anew at every step, and the policy sees the whole state.

    Returns states (S, steps + 1, N), and how many of them are not finite at each step, (steps + 1,).  The policy sees
    zeros instead of those.  Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}; expected one of {MODES}")
    S, N = start.shape
    member = rng.integers(ensemble.config.members, size=(steps, S))
    if mode == "tsinf":
        member[:] = member[:1]
    states = np.empty((S, steps + 1, N))
    states[:, 0] = start
    with np.errstate(over="ignore", invalid="ignore"):  # some trajectories diverge
        for t in range(steps):
            state, mask_probability = states[:, t], ensemble.config.mask_probability
            actions = policy(np.where(np.isfinite(state).all(1, keepdims=True), state, 0.0), rng)
            mask = rng.random(state.shape) < mask_probability if mask_probability else None
            mean, std = (x[..., :N] for x in ensemble.predict(state, actions, mask))
            drawn = (member[t], np.arange(S))
            states[:, t + 1] = mean[drawn] + std[drawn] * rng.standard_normal((S, N))
            visit(t + 1, *((mean, std) if mode == "ts1" else (mean[drawn][None], std[drawn][None])))
    return states, (~np.isfinite(states).all(2)).sum(0)


def diagnose(ensemble: Ensemble, held_out: Transitions) -> dict[str, np.ndarray]:
    """Return the mixture's mean log-density, in nats, and two measures of each dimension of the next state, (N,).

    rmse_share: the error of the mean in standard deviations of s' - s.  coverage: by the central 90% interval.
    """
    mean, std = (x[..., : ensemble.N] for x in ensemble.predict(held_out.states, held_out.actions, held_out.mask))
    spread = (held_out.next_states - held_out.states).std(0)
    error = np.sqrt(((mean.mean(0) - held_out.next_states) ** 2).mean(0))
    level = ndtr((held_out.next_states - mean) / std).mean(0)
    return {
        "rmse_share": error / np.where(spread > 0, spread, 1),
        "coverage": ((level >= 0.05) & (level <= 0.95)).mean(0),
        "log_likelihood": mixture(ensemble.log_density(held_out)).mean(),
    }


def linear_log_likelihood(ensemble: Ensemble, training: Transitions, held_out: Transitions) -> float:
    """Return the mean held-out log-density, in nats, of a linear Gaussian on the inputs and targets of the ensemble."""
    sets = []
    for data in (training, held_out):
        x, *rest = (tensor.double().cpu().numpy() for tensor in ensemble.tensors(data))
        sets.append((np.hstack([x, np.ones((len(x), 1))]), *rest))
    (x, target, weight), (held_x, held_target, _) = sets
    total = 0.0
    for i, scale in enumerate(ensemble.target_std[: ensemble.N].tolist()):
        y, w = target[:, i], weight[:, i]
        coefficients = np.linalg.lstsq((x * w[:, None]).T @ x, (x * w[:, None]).T @ y, rcond=None)[0]
        std = max(np.sqrt(np.average((y - x @ coefficients) ** 2, weights=w)), 1e-8)  # 0 for a constant dimension
        total += log_normal(held_target[:, i], held_x @ coefficients, std).mean() - math.log(scale)
    return total
