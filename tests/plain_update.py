"""One collect's update (Algorithm C.1 after the rollout), once more, plainly and slowly.

This is the second definition that the training scripts are compared with, written from the paper.
It shares no code with them, and prefers the textbook's form to the fast one everywhere:
fp64, one backward pass per task, real gradient vectors, convex programs, Adam by hand.

K tasks, E episodes a task, S steps an episode, N = E * S samples a task, D shared parameters.
Sample e * S + s of a task is step s of its episode e.
A "side" is the actor (its network and the log-std) or the critic (its network and PopArt's heads).
A network is shared by all tasks; of log-std and heads, each task has a row of its own.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

SIGMA_FLOOR = 1e-4
LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's default
ADVANTAGE_EPS = 1e-8
BETA_1, BETA_2 = 0.9, 0.999  # Adam's


class Variant(NamedTuple):
    """What tells one training script from another."""

    layer_norm: tuple[str, ...]  # the sides that have it
    popart: str  # none, welford or ema
    actor: str  # mean, fairgrad, pcgrad or cagrad
    critic: str  # the same four


def random_rollout(num_tasks, episodes, steps, seed=0):
    """A collect of noise, with rewards that differ from task to task by orders of magnitude."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** np.linspace(-1, 1.5, num_tasks)[:, None, None]
    return {
        "obs": rng.normal(size=(num_tasks, episodes, steps + 1, 39 + num_tasks)),
        "actions": rng.normal(size=(num_tasks, episodes, steps, 4)),
        "rewards": scales * (rng.normal(size=(num_tasks, episodes, steps)) + 0.5),
    }


def network_names(state, side):
    """The names of a network's parameters, in the network's order."""
    names = [name for name in state if name.startswith(side + ".")]
    return sorted(names, key=lambda name: (int(name.split(".")[1]), name.endswith("bias")))


def row_names(variant, side):
    """The names of the parameters of which every task has a row of its own."""
    if side == "actor":
        return ["log_std"]
    if variant.popart == "none":
        return []
    return ["popart.scale", "popart.bias"]


def network(variant, parameters, side, x):
    """The output of the side's multi-layer perceptron on x."""
    last = max(int(name.split(".")[1]) for name in network_names(parameters, side))
    index = 0
    while index < last:
        # A hidden layer: Linear, ReLU or Linear without bias, LayerNorm, ReLU.
        x = x @ parameters[f"{side}.{index}.weight"].T
        if side in variant.layer_norm:
            norm = f"{side}.{index + 1}"
            x = x - x.mean(dim=-1, keepdim=True)
            x = x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + LAYER_NORM_EPS)
            x = x * parameters[norm + ".weight"] + parameters[norm + ".bias"]
            index += 3
        else:
            x = x + parameters[f"{side}.{index}.bias"]
            index += 2
        x = torch.relu(x)
    return x @ parameters[f"{side}.{last}.weight"].T + parameters[f"{side}.{last}.bias"]


def log_probability(mean, log_std, action):
    """The log-density of a diagonal Gaussian at the unclipped action."""
    z = (action - mean) / torch.exp(log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def raw_values(variant, state, k, obs):
    """V of task k, in units of return: h, or sigma * (scale * h + bias) + mu with PopArt."""
    h = network(variant, state, "critic", obs).squeeze(-1)
    if variant.popart == "none":
        return h
    u = state["popart.scale"][k] * h + state["popart.bias"][k]
    return state["popart.sigma"][k] * u + state["popart.mu"][k]


def normalised(variant, state, x):
    """Raw returns or values [K, N] in each task's normalised space, if there is one."""
    if variant.popart == "none":
        return x
    return (x - state["popart.mu"][:, None]) / state["popart.sigma"][:, None]


def values_and_advantages(variant, args, state, rollout):
    """V and A of every sample with the current critic, both raw and [K, N].

    GAE by its definition, A_t = sum over j >= t of (gamma lambda)^(j - t) delta_j. The episode is
    truncated, so the value of its last observation counts, unless args.bootstrap_truncation is off.
    """
    rewards = rollout["rewards"]
    steps = rewards.shape[-1]
    values = torch.stack([raw_values(variant, state, k, x) for k, x in enumerate(rollout["obs"])])
    next_values = values[..., 1:].clone()
    if not args.bootstrap_truncation:
        next_values[..., -1] = 0.0
    deltas = rewards + args.gamma * next_values - values[..., :-1]
    lags = torch.arange(steps)[:, None] - torch.arange(steps)  # [j, t]: j - t
    discounts = (args.gamma * args.gae_lambda) ** lags.double() * (lags >= 0)
    return values[..., :-1].flatten(1), (deltas @ discounts).flatten(1)


def popart_update(variant, args, state, returns):
    """Takes a collect's returns [K, N] into the statistics and moves the heads so that V stays."""
    mu = state["popart.mu"]
    sigma = state["popart.sigma"]
    n = state["popart.count"]
    batch_mean = returns.mean(dim=1)

    if variant.popart == "welford":
        # Two samples pooled (Chan): counts, means and sums of squared deviations.
        m = returns.shape[1]
        batch_m2 = ((returns - batch_mean[:, None]) ** 2).sum(dim=1)
        delta = batch_mean - mu
        new_n = n + m
        new_mu = mu + delta * m / new_n
        state["popart.m2"] = state["popart.m2"] + batch_m2 + delta**2 * n * m / new_n
        variance = state["popart.m2"] / new_n
    else:
        # Averages of the first two moments over collects, free of bias towards their start.
        new_n = n + 1
        rate = args.popart_beta / (1 - (1 - args.popart_beta) ** new_n)
        batch_nu = (returns**2).mean(dim=1)
        new_mu = (1 - rate) * mu + rate * batch_mean
        state["popart.nu"] = (1 - rate) * state["popart.nu"] + rate * batch_nu
        variance = torch.clamp(state["popart.nu"] - new_mu**2, min=0)

    new_sigma = torch.clamp(torch.sqrt(variance), min=SIGMA_FLOOR)
    state["popart.scale"] = state["popart.scale"] * sigma / new_sigma
    state["popart.bias"] = (sigma * state["popart.bias"] + mu - new_mu) / new_sigma
    state["popart.count"] = new_n
    state["popart.mu"] = new_mu
    state["popart.sigma"] = new_sigma


def actor_loss(variant, args, parameters, batch):
    """One task's clipped surrogate less its entropy bonus."""
    mean = network(variant, parameters, "actor", batch["obs"])
    log_std = parameters["log_std"]
    ratio = torch.exp(log_probability(mean, log_std, batch["actions"]) - batch["old_log_prob"])
    clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)

    raw = batch["advantages"]
    deviation = raw - raw.mean()
    std = torch.sqrt((deviation**2).mean())
    advantages = deviation / (std + ADVANTAGE_EPS)

    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()
    entropy = (0.5 + 0.5 * math.log(2 * math.pi) + log_std).sum()
    return -surrogate - args.ent_coef * entropy


def critic_loss(variant, args, parameters, batch):
    """One task's value loss: in its normalised space with PopArt, in raw space without."""
    value = network(variant, parameters, "critic", batch["obs"]).squeeze(-1)
    if variant.popart != "none":
        value = parameters["popart.scale"] * value + parameters["popart.bias"]
    error = (value - batch["returns"]) ** 2
    if args.clip_vloss:
        change = torch.clamp(value - batch["old_values"], -args.clip_coef, args.clip_coef)
        clipped_error = (batch["old_values"] + change - batch["returns"]) ** 2
        error = torch.maximum(error, clipped_error)
    return args.vf_coef * 0.5 * error.mean()


def task_gradients(variant, args, state, side, batches):
    """The gradients of all tasks' losses, a backward pass each.

    Returns J [K, D], flat over the network's parameters, and per row parameter the K own gradients.
    """
    loss_function = actor_loss if side == "actor" else critic_loss
    shared = network_names(state, side)
    own = row_names(variant, side)
    flats = []
    rows = {name: [] for name in own}
    for k, batch in enumerate(batches):
        parameters = {name: state[name].clone() for name in shared}
        for name in own:
            parameters[name] = state[name][k].clone()
        for parameter in parameters.values():
            parameter.requires_grad_(True)

        loss = loss_function(variant, args, parameters, batch)
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))
        flats.append(torch.cat([gradients[name].flatten() for name in shared]))
        for name in own:
            rows[name].append(gradients[name])
    return torch.stack(flats), {name: torch.stack(x) for name, x in rows.items()}


# A combiner takes the tasks' flat gradients, J [K, D], to a direction d [D] and to weights [K]
# with d = weights @ J. The weights are what scales the tasks' own rows.


def combine_mean(jacobian):
    """The average gradient."""
    return jacobian.mean(dim=0), np.full(len(jacobian), 1 / len(jacobian))


def combine_pcgrad(jacobian, orders):
    """PCGrad: each gradient loses its part along every other one that it conflicts with.

    orders[i] says in which order g_i meets the others. The projected gradients are averaged.
    """
    count = len(jacobian)
    projected = []
    coefficients = np.eye(count)
    for i in range(count):
        g = jacobian[i].clone()
        for j in orders[i]:
            inner = torch.dot(g, jacobian[j]).item()
            if j != i and inner < 0:
                share = inner / torch.dot(jacobian[j], jacobian[j]).item()
                g = g - share * jacobian[j]
                coefficients[i, j] -= share
        projected.append(g)
    return torch.stack(projected).mean(dim=0), coefficients.mean(axis=0)


def combine_cagrad(jacobian, c):
    """CAGrad: the average gradient plus a step that helps the worst-off task most.

    The step's direction is J^T x, where x minimises g0 . J^T x + c |g0| |J^T x| on the simplex.
    The objective is convex, and its minimiser stays when all gradients are scaled by one number.
    So they are scaled to |g0| = 1, which is what the optimizer's tolerance is made for.
    """
    count = len(jacobian)
    gram = (jacobian @ jacobian.T).numpy()
    uniform = np.full(count, 1 / count)
    gram = gram / (uniform @ gram @ uniform)

    def objective_and_slope(x):
        norm = math.sqrt(x @ gram @ x)
        return uniform @ gram @ x + c * norm, gram @ uniform + c * (gram @ x) / norm

    solution = minimize(
        objective_and_slope,
        uniform,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    x = np.maximum(solution.x, 0)
    x = x / x.sum()
    # No point of the simplex lies lower than this gap below the found one: the problem is convex.
    slope = objective_and_slope(x)[1]
    gap = x @ slope - slope.min()
    if not gap < 1e-6:
        raise ArithmeticError(f"CAGrad's minimum was missed, by up to {gap:.0e} of |g0|^2")

    g0 = jacobian.mean(dim=0)
    gx = torch.as_tensor(x) @ jacobian
    ratio = (c * g0.norm() / gx.norm()).item()
    direction = (g0 + ratio * gx) / (1 + c**2)
    return direction, (uniform + ratio * x) / (1 + c**2)


def solve_fairgrad(gram):
    """The x > 0 with x_k (G x)_k = 1 for every k, for a Gram with a unit diagonal.

    It minimises x G x / 2 - sum of log x_k, for which damped Newton steps converge from anywhere.
    """
    x = np.ones(len(gram))
    for _ in range(200):
        gradient = gram @ x - 1 / x
        step = np.linalg.solve(gram + np.diag(1 / x**2), gradient)
        x = x - step / (1 + math.sqrt(gradient @ step))
    if not np.abs(x * (gram @ x) - 1).max() < 1e-12:
        raise ArithmeticError("FairGrad's equations were not solved to 1e-12: opposed gradients?")
    return x


def combine_fairgrad(jacobian):
    """FairGrad with alpha = 1: the weights w > 0 with w_k (G w)_k = 1.

    Every gradient is brought to length 1 before the equations are solved, and the weights are
    taken back after, which is exact (Theorem 1).
    A task whose gradient is zero has weight 0 and leaves the equations.
    """
    norms = jacobian.norm(dim=1)
    alive = norms > 0
    weights = torch.zeros(len(jacobian), dtype=torch.float64)
    if alive.any():
        unit = jacobian[alive] / norms[alive][:, None]
        x = solve_fairgrad((unit @ unit.T).numpy())
        weights[alive] = torch.as_tensor(x) / norms[alive]
    return weights @ jacobian, weights.numpy()


def combine(args, combiner, jacobian, rng):
    """The direction and the weights of the named combiner."""
    if combiner == "pcgrad":
        return combine_pcgrad(jacobian, [rng.permutation(len(jacobian)) for _ in jacobian])
    if combiner == "cagrad":
        return combine_cagrad(jacobian, args.cagrad_c)
    return {"mean": combine_mean, "fairgrad": combine_fairgrad}[combiner](jacobian)


def clip_to_norm(gradients, max_norm):
    """All gradients of one side, scaled down together if their joint norm is above max_norm."""
    norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients.values()))
    coefficient = min(1.0, max_norm / (norm + 1e-6))
    return {name: coefficient * gradient for name, gradient in gradients.items()}


def adam(args, state, gradients, step):
    """One step of Adam for the named parameters. step is 1 the first time."""
    for name, gradient in gradients.items():
        zero = torch.zeros_like(gradient)
        m = BETA_1 * state.get("adam_m." + name, zero) + (1 - BETA_1) * gradient
        v = BETA_2 * state.get("adam_v." + name, zero) + (1 - BETA_2) * gradient**2
        m_hat = m / (1 - BETA_1**step)
        v_hat = v / (1 - BETA_2**step)
        state[name] = state[name] - args.learning_rate * m_hat / (torch.sqrt(v_hat) + args.adam_eps)
        state["adam_m." + name] = m
        state["adam_v." + name] = v


def by_name(state, side, direction, weights, rows):
    """The combined gradient by parameter name: the network's direction, each row by its weight."""
    gradients = {}
    start = 0
    for name in network_names(state, side):
        size = state[name].numel()
        gradients[name] = direction[start : start + size].reshape(state[name].shape)
        start += size
    for name, x in rows.items():
        gradients[name] = torch.einsum("k,k...->k...", torch.as_tensor(weights), x)
    return gradients


def stratified_minibatches(args, rng, tasks):
    """A pass's minibatches: the samples of each task, [K, n], in an order of the task's own."""
    orders = np.tile(np.arange(args.num_steps), (tasks, 1))
    return np.array_split(rng.permuted(orders, axis=1), args.num_minibatches, axis=1)


def plain_update(variant, args, state, rollout, rng):
    """One collect's whole update. Returns the new state and a log; the old state is left alone.

    state: parameters, PopArt's statistics and Adam's averages, by name.
    rollout: obs [K, E, S + 1, .], whose last is the true final observation, actions [K, E, S, 4]
    and rewards [K, E, S].
    rng: it draws what the scripts draw, in their order: a pass's minibatches, and for PCGrad the
    critic's orders before the actor's.
    """
    state = {name: x.clone() if torch.is_tensor(x) else x for name, x in state.items()}
    rollout = {name: torch.from_numpy(x) for name, x in rollout.items()}
    tasks = len(rollout["rewards"])
    obs = rollout["obs"][:, :, :-1].flatten(1, 2)
    actions = rollout["actions"].flatten(1, 2)
    log = {}

    # The old log-probabilities are those of the policy that made the rollout, in all repeats.
    old_log_probs = []
    for k in range(tasks):
        mean = network(variant, state, "actor", obs[k])
        old_log_probs.append(log_probability(mean, state["log_std"][k], actions[k]))

    for repeat in range(args.update_epochs):
        # Values, advantages and returns are those of the current critic, in raw space.
        values, advantages = values_and_advantages(variant, args, state, rollout)
        returns = advantages + values

        if repeat == 0:
            unexplained = (returns - values).var(dim=1, correction=0)
            explained = 1 - unexplained / returns.var(dim=1, correction=0)
            log["explained_variance"] = explained.clamp(min=-1)
            # The statistics see each collect once.
            if variant.popart != "none":
                popart_update(variant, args, state, returns)

        samples = {
            "obs": obs,
            "actions": actions,
            "old_log_prob": old_log_probs,
            "advantages": advantages,
            "returns": normalised(variant, state, returns),
            "old_values": normalised(variant, state, values),
        }
        for indices in stratified_minibatches(args, rng, tasks):
            batches = [
                {name: x[k][chosen] for name, x in samples.items()}
                for k, chosen in enumerate(indices)
            ]
            # The sides share nothing, so it does not matter which one steps first.
            state["adam_step"] = state["adam_step"] + 1
            for side, combiner in (("critic", variant.critic), ("actor", variant.actor)):
                jacobian, rows = task_gradients(variant, args, state, side, batches)
                direction, weights = combine(args, combiner, jacobian, rng)
                gradients = by_name(state, side, direction, weights, rows)
                gradients = clip_to_norm(gradients, args.max_grad_norm)
                adam(args, state, gradients, float(state["adam_step"]))

                # Each task's gradient, and its part in the combined one, w_k <g_k, d>.
                norms = jacobian.norm(dim=1)
                contributions = torch.as_tensor(weights) * (jacobian @ direction)
                log.setdefault(side + "_gradient_norm", []).append(norms)
                log.setdefault(side + "_contribution", []).append(contributions)
    means = {name: torch.stack(x).mean(0) for name, x in log.items() if isinstance(x, list)}
    return state, log | means
