"""The comparison in Figures 1 and 2: an ensemble of single-step Gaussian models (PETS, Chua et al. 2018)."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from scipy.special import logsumexp, ndtr
from torch import Tensor, nn
from tqdm import tqdm

from ttlib import files
from ttlib.data import Episodes

MODES = ("ts1", "tsinf")


CHECK = 250  # updates between two looks at the held-out transitions


@dataclass(frozen=True)
class EnsembleConfig:
    """Members, their networks and how they are fitted.

    hidden: share of state dimensions that are hidden at each step; above 0 the inputs are the visible values and
    the mask, the targets values instead of differences.  rewards: the reward is predicted too, as the last output.
    """

    members: int = 5
    width: int = 200
    layers: int = 4  # hidden layers
    hidden: float = 0.0
    rewards: bool = False
    lr: float = 1e-3
    batch: int = 256
    updates: int = 10_000
    patience: int = 8  # checks without a member that improved
    seed: int = 0

    def __post_init__(self):
        for name in ("members", "width", "layers", "batch", "updates", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least 1")
        if not 0 <= self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}; expected a share, 0 <= hidden < 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}; expected a positive number")


@dataclass(frozen=True)
class Transitions:
    """Steps with their successors.  states, next_states (n, N), actions (n, M), rewards (n,) float64; hidden and
    next_hidden (n, N) bool: what a partially observed dataset does not show, else None."""

    states: np.ndarray
    actions: np.ndarray
    next_states: np.ndarray
    rewards: np.ndarray
    hidden: np.ndarray | None = None
    next_hidden: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.states)


def transitions(data: Episodes) -> Transitions:
    """Every step but the last of each episode, whose successor is not known; ValueError if none is left."""
    rows = np.setdiff1d(np.arange(data.starts[-1]), data.starts[1:] - 1)
    if not len(rows):
        raise ValueError(f"no transitions: all {len(data)} episodes have a single step")
    states, actions = (np.asarray(x, np.float64) for x in (data.states, data.actions))
    hidden = () if data.hidden is None else (data.hidden[rows], data.hidden[rows + 1])
    return Transitions(states[rows], actions[rows], states[rows + 1], data.rewards[rows], *hidden)


class Ensemble(nn.Module):
    """E members as one batch of matrix products; each gives a mean and a variance of every output.

    Outputs are differences s' - s (values s' where states are partly hidden), then the reward if there is one.
    """

    def __init__(self, N: int, M: int, config: EnsembleConfig):
        super().__init__()
        self.config, self.N, self.M = config, N, M
        rng = torch.Generator().manual_seed(config.seed)
        E, outputs = config.members, N + config.rewards
        sizes = [N + M + N * (config.hidden > 0), *[config.width] * config.layers, 2 * outputs]
        draw = lambda n, m: torch.randn(E, n, m, generator=rng) / n**0.5  # noqa: E731
        self.weights = nn.ParameterList(draw(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.biases = nn.ParameterList(torch.zeros(E, 1, m) for m in sizes[1:])
        # Bounds of each member's own, where PETS shares them: members are fitted independently of each other.
        self.max_log_var = nn.Parameter(torch.full((E, 1, outputs), 0.5))
        self.min_log_var = nn.Parameter(torch.full((E, 1, outputs), -10.0))
        for name, size in (("input", N + M), ("target", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{name}_std", torch.ones(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised inputs (B, n), or (E, B, n) for members of their own -> mean, log-variance (E, B, outputs)."""
        x = x.expand(self.config.members, *x.shape[-2:])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        mean, log_var = x.chunk(2, dim=-1)
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)  # PETS, Appendix A.1
        return mean, self.min_log_var + F.softplus(log_var - self.min_log_var)

    def standardise(self, data: Transitions) -> None:
        """Take the means and deviations of inputs and targets, visible values alone; a constant is left unscaled."""
        target, weight = self._targets(data)
        visible = np.ones_like(data.states) if data.hidden is None else ~data.hidden
        known = np.hstack([visible, np.ones_like(data.actions)])
        for name, x, w in (("input", np.hstack([data.states, data.actions]), known), ("target", target, weight)):
            mean = np.average(x, axis=0, weights=w)
            std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
            getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
            getattr(self, f"{name}_std").copy_(torch.from_numpy(np.where(std > 1e-12 * (1 + abs(mean)), std, 1.0)))

    def inputs(self, states: np.ndarray, actions: np.ndarray, hidden: np.ndarray | None = None) -> Tensor:
        """What the network is given, (B, n) float32: values standardised in float64, 0 (the mean) where hidden, then
        where states are partly hidden the mask, 1 = visible, then actions."""
        if (hidden is not None) != (self.config.hidden > 0):
            found = "no mask is" if hidden is None else "a mask is"
            raise ValueError(f"{found} given, but the ensemble's config has hidden={self.config.hidden}")
        mean, std = self.input_mean.cpu().numpy(), self.input_std.cpu().numpy()
        x = (np.hstack([states, actions]) - mean) / std
        if hidden is not None:
            x = np.hstack([np.where(hidden, 0, x[:, : self.N]), ~hidden, x[:, self.N :]])
        return torch.from_numpy(x).float().to(self.max_log_var.device)

    def tensors(self, data: Transitions) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, standardised targets and the weights of their loss, for `nats`."""
        target, weight = self._targets(data)
        target = (target - self.target_mean.cpu().numpy()) / self.target_std.cpu().numpy()
        x = self.inputs(data.states, data.actions, data.hidden)
        return x, torch.from_numpy(target).to(x), torch.from_numpy(weight).to(x)

    def _targets(self, data: Transitions) -> tuple[np.ndarray, np.ndarray]:
        if data.next_hidden is None:
            target, weight = data.next_states - data.states, np.ones_like(data.states)
        else:
            target, weight = data.next_states, 1.0 - data.next_hidden
        if self.config.rewards:
            target = np.hstack([target, data.rewards[:, None]])
            weight = np.hstack([weight, np.ones((len(data), 1))])
        return target, weight

    @torch.no_grad()
    def predict(
        self, states: np.ndarray, actions: np.ndarray, hidden: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each member's Gaussian of the next state (then the reward), in raw units.

        states (B, N), actions (B, M), hidden (B, N) bool if states are partly hidden ->
        means and standard deviations, (E, B, outputs) float64.
        """
        mean, log_var = (x.double() for x in self(self.inputs(states, actions, hidden)))
        mean = (self.target_mean + self.target_std * mean).cpu().numpy()
        if hidden is None:
            mean[..., : self.N] += states
        return mean, (self.target_std * (log_var / 2).exp()).cpu().numpy()

    def log_density(self, data: Transitions) -> np.ndarray:
        """log p(s' | s, a) of each member in nats, in raw units and over all N dimensions, hidden or not -> (E, n)."""
        mean, std = (x[..., : self.N] for x in self.predict(data.states, data.actions, data.hidden))
        return log_normal(data.next_states, mean, std).sum(-1)


def log_normal(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """log N(x; mean, std^2), elementwise."""
    return -0.5 * (((x - mean) / std) ** 2 + math.log(2 * math.pi)) - np.log(std)


def mixture(log_p: np.ndarray) -> np.ndarray:
    """Log-densities of members (E, ...) -> that of their uniform mixture (...)."""
    return logsumexp(log_p, axis=0) - math.log(len(log_p))


def nats(ensemble: Ensemble, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """-log p a visible target, standardised, of each member -> (E,).  Tensors (B, ...) or (E, B, ...)."""
    mean, log_var = ensemble(x)
    value = 0.5 * ((target - mean) ** 2 * (-log_var).exp() + log_var + math.log(2 * math.pi))
    return (value * weight).sum((1, 2)) / weight.sum((-2, -1))


def fit(
    training: Transitions, held_out: Transitions, config: EnsembleConfig, device: str | torch.device = "cpu"
) -> tuple[Ensemble, list[dict]]:
    """Maximum likelihood by Adam, each member on a bootstrap sample of its own; the step size falls to 0 as a cosine.

    Every CHECK updates the held-out nats of each member are taken; fitting stops when no member improved for
    `patience` checks.  Each member is returned as it was at its own best check.  Deterministic by seed.
    -> the ensemble and its curve, rows of update, training (nats a target) and held_out (those of each member).
    """
    if held_out.states.shape[1:] + held_out.actions.shape[1:] != training.states.shape[1:] + training.actions.shape[1:]:
        raise ValueError(
            f"held-out states and actions {held_out.states.shape}, {held_out.actions.shape} do not have the "
            f"dimensions of the training data, {training.states.shape}, {training.actions.shape}"
        )
    ensemble = Ensemble(training.states.shape[1], training.actions.shape[1], config).to(device)
    ensemble.standardise(training)
    tensors, held = ensemble.tensors(training), ensemble.tensors(held_out)
    rng = torch.Generator().manual_seed(config.seed)
    bootstrap = torch.randint(len(training), (config.members, len(training)), generator=rng)
    optimiser = torch.optim.Adam(ensemble.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.updates)
    best, best_state, curve, stale = torch.full((config.members,), torch.inf), None, [], 0
    bar = tqdm(range(1, config.updates + 1), unit="update", mininterval=2.0, desc="fit ensemble")
    for update in bar:
        rows = torch.randint(len(training), (config.members, config.batch), generator=rng)
        rows = bootstrap.gather(1, rows).to(device)
        value = nats(ensemble, *(x[rows] for x in tensors))
        # PETS's penalty on the bounds, per target as the loss is.
        penalty = 0.01 * (ensemble.max_log_var - ensemble.min_log_var).mean((1, 2))
        optimiser.zero_grad()
        (value + penalty).sum().backward()
        optimiser.step()
        schedule.step()
        if update % CHECK == 0 or update == config.updates:
            with torch.no_grad():
                found = nats(ensemble, *held).cpu()
            row = {"update": update, "training": value.mean().item(), "held_out": found.tolist()}
            if not np.isfinite([row["training"], *row["held_out"]]).all():
                raise FloatingPointError(f"nats are {row} at update {update}: lower lr={config.lr}")
            curve.append(row)
            better, state = found < best, ensemble.state_dict()
            if best_state is None:
                best_state = {name: p.clone() for name, p in state.items()}
            for name, _ in ensemble.named_parameters():
                best_state[name][better] = state[name][better]
            best, stale = torch.minimum(best, found), 0 if better.any() else stale + 1
            bar.set_postfix_str(f"held out {found.mean():.3f} nats a target")
            if stale >= config.patience:
                break
    ensemble.load_state_dict(best_state)
    return ensemble.eval(), curve


def sample(
    ensemble: Ensemble,
    policy: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    start: np.ndarray,
    steps: int,
    mode: str,
    rng: np.random.Generator,
    visit: Callable[[int, np.ndarray, np.ndarray], None] = lambda t, mean, std: None,
) -> tuple[np.ndarray, np.ndarray]:
    """S trajectories by the trajectory sampling of PETS, with a policy's actions at the model's own states.

    start: (S, N); mode: "ts1", a particle draws a member anew at every step, or "tsinf", it keeps one.
    visit(t, means, deviations): the predictive of step t = 1, ..., (K, S, N) each; the K components are all
    members for ts1, the particle's own for tsinf.  Where states are partly hidden, the model is given fresh masks
    and the policy the whole sample.
    -> states (S, steps + 1, N); how many of the S are not finite at each step (steps + 1,): they are kept as they
    are, and the policy is given zeros for them.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}; expected one of {MODES}")
    S, N = start.shape
    member = rng.integers(ensemble.config.members, size=(steps, S))
    if mode == "tsinf":
        member[:] = member[:1]
    states = np.empty((S, steps + 1, N))
    states[:, 0] = start
    with np.errstate(over="ignore", invalid="ignore"):  # of trajectories that diverge
        for t in range(steps):
            state, share = states[:, t], ensemble.config.hidden
            actions = policy(np.where(np.isfinite(state).all(1, keepdims=True), state, 0.0), rng)
            hidden = rng.random(state.shape) < share if share else None
            mean, std = (x[..., :N] for x in ensemble.predict(state, actions, hidden))
            own = (member[t], np.arange(S))
            states[:, t + 1] = mean[own] + std[own] * rng.standard_normal((S, N))
            visit(t + 1, *((mean, std) if mode == "ts1" else (mean[own][None], std[own][None])))
    return states, (~np.isfinite(states).all(2)).sum(0)


def diagnose(ensemble: Ensemble, held_out: Transitions) -> dict[str, np.ndarray]:
    """Is the ensemble a good single-step model?

    rmse_share (N,): error of the mixture's mean over the deviation of s' - s; coverage (N,): share of next states
    inside the mixture's central 90% interval; log_likelihood (): mean nats of the mixture.
    """
    mean, std = (x[..., : ensemble.N] for x in ensemble.predict(held_out.states, held_out.actions, held_out.hidden))
    deviation = (held_out.next_states - held_out.states).std(0)
    error = np.sqrt(((mean.mean(0) - held_out.next_states) ** 2).mean(0))
    level = ndtr((held_out.next_states - mean) / std).mean(0)
    return {
        "rmse_share": error / np.where(deviation > 0, deviation, 1),
        "coverage": ((level >= 0.05) & (level <= 0.95)).mean(0),
        "log_likelihood": mixture(ensemble.log_density(held_out)).mean(),
    }


def linear_log_likelihood(ensemble: Ensemble, training: Transitions, held_out: Transitions) -> float:
    """Mean held-out nats of a linear Gaussian with the ensemble's inputs and targets: least squares on the training
    data, the residual's variance for each dimension."""
    sets = []
    for data in (training, held_out):
        x, *rest = (tensor.double().cpu().numpy() for tensor in ensemble.tensors(data))
        sets.append((np.hstack([x, np.ones((len(x), 1))]), *rest))
    (x, target, weight), (held_x, held_target, _) = sets
    total = 0.0
    for i, scale in enumerate(ensemble.target_std[: ensemble.N].tolist()):
        y, w = target[:, i], weight[:, i]
        coefficients = np.linalg.lstsq((x * w[:, None]).T @ x, (x * w[:, None]).T @ y, rcond=None)[0]
        std = max(np.sqrt(np.average((y - x @ coefficients) ** 2, weights=w)), 1e-8)  # 0 where it is constant
        total += log_normal(held_target[:, i], held_x @ coefficients, std).mean() - math.log(scale)
    return total


def save(folder: Path, ensemble: Ensemble, about: dict) -> None:
    """Write config.json and model.safetensors, the weights in float16; `about` is what their reader should know."""
    config = {"N": ensemble.N, "M": ensemble.M, "ensemble": dataclasses.asdict(ensemble.config), "about": about}
    tensors = {name: buffer.cpu() for name, buffer in ensemble.named_buffers()}
    tensors |= {name: parameter.detach().half().cpu() for name, parameter in ensemble.named_parameters()}
    files.write_aside(folder / "model.safetensors", lambda path: safetensors.torch.save_file(tensors, path))
    text = json.dumps(config, indent=1)
    files.write_aside(folder / "config.json", lambda path: path.write_text(text + "\n"))


def load(folder: Path, device: str | torch.device = "cpu") -> tuple[Ensemble, dict]:
    """Read what `save` wrote -> ensemble, about; FileNotFoundError if it is not there, ValueError if damaged."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing; expected an ensemble, made by `make scratch`")
    try:
        config = json.loads((folder / "config.json").read_text())
        ensemble = Ensemble(config["N"], config["M"], EnsembleConfig(**config["ensemble"]))
        ensemble.load_state_dict(safetensors.torch.load(files.weights(folder)))
        return ensemble.eval().to(device), config["about"]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} is not a readable ensemble ({error!r}); delete it and run `make all`") from error
