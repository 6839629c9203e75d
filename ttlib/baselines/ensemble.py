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
    """The members of an ensemble, their networks, and how they are fitted.

    mask_probability: the probability that a state dimension is masked, at each step.  If it is above 0, the inputs are
    the visible values and the mask, and the targets are next states instead of differences.
    rewards: whether the reward is predicted too, as the last output.
    """

    members: int = 5
    width: int = 200
    layers: int = 4  # hidden layers of each network
    mask_probability: float = 0.0
    rewards: bool = False
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
    """n steps with the states that follow them.

    The masks say which state dimensions a partially observed dataset does not show.
    """

    states: np.ndarray  # (n, N) float64
    actions: np.ndarray  # (n, M) float64
    next_states: np.ndarray  # (n, N) float64
    rewards: np.ndarray  # (n,) float64
    mask: np.ndarray | None = None  # (n, N) bool, true where a state is masked
    next_mask: np.ndarray | None = None  # (n, N) bool, true where a next state is masked

    def __len__(self) -> int:
        return len(self.states)


def transitions(data: Episodes) -> Transitions:
    """Return all transitions of episodes.  The last step of an episode has no next state, and is left out.

    Raises ValueError if no episode has two steps.
    """
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

    Each member gives a mean and a variance of every output.  The outputs are the differences s' - s, followed by the
    reward if the config has one.  For partially observed states they are s' itself instead of the differences.
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
        """Return the mean and the log-variance of each member, (E, B, outputs) each, of standardised outputs.

        x: standardised inputs, (B, n) for all members or (E, B, n) for each member.
        """
        x = x.expand(self.config.members, *x.shape[-2:])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        mean, log_var = x.chunk(2, dim=-1)
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)  # PETS, Appendix A.1
        return mean, self.min_log_var + F.softplus(log_var - self.min_log_var)

    def standardise(self, data: Transitions) -> None:
        """Set the means and standard deviations of inputs and targets from the visible values of `data`.

        The standard deviation of a constant is set to 1.
        """
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

        Values are standardised in float64.  A masked value is 0, which is the mean.  Visibility is 1 or 0.
        Raises ValueError if there is a mask but the config has none, or the other way round.
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

        Outputs are the next state, followed by the reward if the config has one, in raw units.
        states (B, N), actions (B, M), mask (B, N) bool for partially observed states, otherwise None.
        """
        mean, log_var = (x.double() for x in self(self.inputs(states, actions, mask)))
        mean = (self.target_mean + self.target_std * mean).cpu().numpy()
        if mask is None:
            mean[..., : self.N] += states
        return mean, (self.target_std * (log_var / 2).exp()).cpu().numpy()

    def log_density(self, data: Transitions) -> np.ndarray:
        """Return log p(s' | s, a) of each member in nats, (E, n), in raw units.

        It is the sum over all N dimensions, masked ones included.
        """
        mean, std = (x[..., : self.N] for x in self.predict(data.states, data.actions, data.mask))
        return log_normal(data.next_states, mean, std).sum(-1)


def log_normal(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return log N(x; mean, std^2), elementwise."""
    return -0.5 * (((x - mean) / std) ** 2 + math.log(2 * math.pi)) - np.log(std)


def mixture(log_p: np.ndarray) -> np.ndarray:
    """Return the log-density (...) of the uniform mixture of members with log-densities (E, ...)."""
    return logsumexp(log_p, axis=0) - math.log(len(log_p))


def nats(ensemble: Ensemble, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of -log p over the visible targets, for each member: nats per standardised target, (E,).

    x, target, weight: from `Ensemble.tensors`, (B, ...) for all members or (E, B, ...) for each member.
    """
    mean, log_var = ensemble(x)
    value = 0.5 * ((target - mean) ** 2 * (-log_var).exp() + log_var + math.log(2 * math.pi))
    return (value * weight).sum((1, 2)) / weight.sum((-2, -1))


def fit(
    training: Transitions, held_out: Transitions, config: EnsembleConfig, device: str | torch.device = "cpu"
) -> tuple[Ensemble, list[dict]]:
    """Fit an ensemble by maximum likelihood, each member on its own bootstrap sample of the data.

    Held-out nats are checked every CHECK updates.  Fitting stops when no member has improved for `patience` checks, and
    each member is returned as it was at its own best check.  The result is determined by config.seed.

    Returns the ensemble and its curve: a list of rows with update, training (the mean nats per target on the batch) and
    held_out (the nats per target of each member).  Raises ValueError for data of different dimensions, and
    FloatingPointError if the nats are not finite.
    """
    _check_same_dimensions(training, held_out)
    ensemble = Ensemble(training.states.shape[1], training.actions.shape[1], config).to(device)
    ensemble.standardise(training)
    best_state, curve = _train(ensemble, ensemble.tensors(training), ensemble.tensors(held_out))
    ensemble.load_state_dict(best_state)
    return ensemble.eval(), curve


def _train(
    ensemble: Ensemble, tensors: tuple[Tensor, ...], held_tensors: tuple[Tensor, ...]
) -> tuple[dict, list[dict]]:
    """Train the members in place.  Return the weights of each at its own best check, and the curve."""
    config, device = ensemble.config, tensors[0].device
    optimiser = torch.optim.Adam(ensemble.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.updates)  # down to 0
    best, curve = _BestMembers(ensemble), []
    batches = _bootstrap_batches(len(tensors[0]), config)
    bar = tqdm(batches, "fit ensemble", config.updates, unit="update", mininterval=2.0)
    for update, rows in enumerate(bar, 1):
        training_nats = _update(ensemble, optimiser, [x[rows.to(device)] for x in tensors])
        schedule.step()
        if update % CHECK == 0 or update == config.updates:
            curve.append(_check(ensemble, held_tensors, update, training_nats))
            best.record(torch.tensor(curve[-1]["held_out"]))
            bar.set_postfix_str(f"held out {np.mean(curve[-1]['held_out']):.3f} nats per target")
            if best.stale_checks >= config.patience:
                break
    return best.state, curve


def _check_same_dimensions(training: Transitions, held_out: Transitions) -> None:
    if held_out.states.shape[1:] + held_out.actions.shape[1:] != training.states.shape[1:] + training.actions.shape[1:]:
        raise ValueError(
            f"held-out states and actions {held_out.states.shape}, {held_out.actions.shape} do not have the "
            f"dimensions of the training data, {training.states.shape}, {training.actions.shape}: use two parts of one "
            "dataset"
        )


def _bootstrap_batches(n: int, config: EnsembleConfig) -> Iterator[Tensor]:
    """Draw a bootstrap sample of n rows for each member, and yield a batch of its rows, (E, batch), per update."""
    rng = torch.Generator().manual_seed(config.seed)
    bootstrap = torch.randint(n, (config.members, n), generator=rng)
    for _ in range(config.updates):
        yield bootstrap.gather(1, torch.randint(n, (config.members, config.batch), generator=rng))


def _update(ensemble: Ensemble, optimiser: torch.optim.Optimizer, batch: list[Tensor]) -> Tensor:
    """Take one optimiser step on a batch.  Return the mean nats per target before the step, ()."""
    value = nats(ensemble, *batch)
    # PETS penalises the bounds.  The penalty is per target, as the loss is.
    penalty = 0.01 * (ensemble.max_log_var - ensemble.min_log_var).mean((1, 2))
    optimiser.zero_grad()
    (value + penalty).sum().backward()
    optimiser.step()
    return value.detach().mean()


@torch.no_grad()
def _check(ensemble: Ensemble, held_tensors: tuple[Tensor, ...], update: int, training_nats: Tensor) -> dict:
    """Return a row of the curve.  Raise FloatingPointError if it is not finite."""
    row = {"update": update, "training": training_nats.item(), "held_out": nats(ensemble, *held_tensors).tolist()}
    if not np.isfinite([row["training"], *row["held_out"]]).all():
        raise FloatingPointError(
            f"nats are {row} at update {update}; expected finite numbers: lower lr={ensemble.config.lr}"
        )
    return row


class _BestMembers:
    """The weights of each member at its own best check, and the number of checks since any member improved."""

    def __init__(self, ensemble: Ensemble):
        self.ensemble, self.stale_checks = ensemble, 0
        self.nats = torch.full((ensemble.config.members,), torch.inf)
        self.state = {name: x.clone() for name, x in ensemble.state_dict().items()}

    def record(self, held_nats: Tensor) -> None:
        """Take the weights of the members whose held-out nats (E,) are lower than before."""
        better, state = held_nats < self.nats, self.ensemble.state_dict()
        for name, _ in self.ensemble.named_parameters():
            self.state[name][better] = state[name][better]
        self.nats = torch.minimum(self.nats, held_nats)
        self.stale_checks = 0 if better.any() else self.stale_checks + 1


def sample(
    ensemble: Ensemble,
    policy: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    start: np.ndarray,
    steps: int,
    mode: str,
    rng: np.random.Generator,
    visit: Callable[[int, np.ndarray, np.ndarray], None] = lambda t, mean, std: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sample S trajectories by the trajectory sampling of PETS, with actions of a policy at the sampled states.

    start: (S, N).  mode: with "ts1" a trajectory draws a member at every step; with "tsinf" it has one member for all
    steps.  visit(t, means, standard deviations) is called with the predicted Gaussians of each step t = 1, 2, ...,
    (K, S, N) each.  The K Gaussians are those of all members for ts1, and of the trajectory's member for tsinf.
    For partially observed states, the model sees new masks at every step, and the policy sees the whole state.

    Returns states (S, steps + 1, N), and how many of the S states are not finite at each step, (steps + 1,).  States
    that are not finite stay in the result, and the policy sees zeros instead of them.  Raises ValueError for an
    unknown mode.
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
    """Return three measures of the ensemble as a single-step model.

    rmse_share (N,): the root mean squared error of the mixture's mean, divided by the standard deviation of s' - s.
    coverage (N,): the fraction of next states inside the central 90% interval of the mixture.
    log_likelihood (): the mean log-density of the mixture, in nats.
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
    """Return the mean held-out log-density, in nats, of a linear Gaussian model.

    It has the inputs and targets of the ensemble.  Its mean is fitted to the training data by least squares, and its
    variance in each dimension is that of the residuals.
    """
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
