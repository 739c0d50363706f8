"""MT-PPO with LN-c, PopArt and FairGrad on both sides (arXiv 2605.11473, Table D.2).

Critic and actor both follow FairGrad's combination of the K per-task gradients.

Shapes: K tasks, T steps per task and collect in E episodes, n samples per task in a minibatch,
D shared parameters in a network.
"""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import distributions
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import metaworld
import numpy as np
import torch
import torch.nn as nn
import tyro
from metaworld.env_dict import MT10_V3, MT25_V3, MT50_V3
from torch.distributions import Normal
from torch.func import functional_call, grad, vmap
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.utils.tensorboard import SummaryWriter
from tqdm import trange

from fairgrad_solver import solve_fairgrad

SCRIPT = Path(__file__).stem
BENCHMARKS = {"MT10": MT10_V3, "MT25": MT25_V3, "MT50": MT50_V3}
EPISODE_STEPS = 500  # every episode has this length and ends by truncation only
NUM_GOALS = 50  # training goals of a task
OBS_DIM = 39  # 18 numbers now, 18 of the step before, 3 of the goal (B.1)
ACTION_DIM = 4
SIGMA_FLOOR = 1e-4  # of PopArt (our choice)

Normal.set_default_validate_args(False)  # checks would wait for the GPU, and vmap refuses them
bar = partial(trange, leave=False, disable=None, ncols=80)  # progress, in a terminal only


@dataclass
class Args:
    seed: int = 1
    """seed of the initial weights, goals, action noise and minibatches (Table B.1: 10 seeds)"""
    benchmark: Literal["MT10", "MT25", "MT50"] = "MT50"
    """Meta-World task set (Section 5.1: MT10 and MT50)"""
    tasks: tuple[str, ...] = ()
    """Meta-World task names, such as reach-v3 door-open-v3, in place of a benchmark"""
    reward_version: Literal["v1", "v2"] = "v2"
    """Meta-World's reward functions (Section 5.1: v2 unless labelled V1)"""
    num_steps: int = 10_000
    """environment steps per task and collect, a multiple of an episode's 500 (Table B.1)"""
    update_epochs: int = 16
    """passes over each collect, "PPO repeats per collect" (Table B.1)"""
    num_minibatches: int = 32
    """task-stratified minibatches per pass (Table B.1: minibatch size = collect / 32)"""
    learning_rate: float = 3e-4
    """Adam's step size, constant (Table B.1; Section 5.2: no schedule)"""
    adam_eps: float = 1e-5
    """Adam's epsilon (our choice: Meta-World+'s; PyTorch's default is 1e-8)"""
    gamma: float = 0.99
    """discount per step (Table B.1)"""
    gae_lambda: float = 0.97
    """lambda of generalized advantage estimation (Table B.1)"""
    bootstrap_truncation: bool = True
    """value an episode's last observation by the critic (our choice; Meta-World+: as 0)"""
    clip_coef: float = 0.2
    """epsilon of the ratio clip and of the value clip (Table B.1)"""
    clip_vloss: bool = True
    """clip the value loss (B.2: enabled, unlike Meta-World+'s MT50 example)"""
    vf_coef: float = 0.001
    """weight of the value loss (Table B.1)"""
    ent_coef: float = 0.005
    """weight of the entropy bonus (Table B.1)"""
    max_grad_norm: float = 1.0
    """norm that the actor's and the critic's combined gradient are each clipped to (Table B.1)"""
    hidden_sizes: tuple[int, ...] = (400, 400, 400)
    """units in each hidden layer of actor and critic (Table B.1)"""

    # The flags from here on do not change the algorithm: a continued run may change them
    total_timesteps: int | None = None
    """budget in environment steps, in whole collects; None: 2 M per task (Section 5.1)"""
    eval_interval: int | None = None
    """environment steps between evaluations; None: 40,000 per task (Table D.11)"""
    eval_episodes: int = 50
    """episodes per task and evaluation, each on another one of the task's 50 goals (B.1)"""
    keep_checkpoints_every: int = 0
    """collects between checkpoints that are kept, as checkpoint_00010.pt; 0: none"""
    run_dir: str | None = None
    """directory in which a run starts, or goes on exactly where it was; None: a new one"""
    cuda: bool = True
    """compute on the GPU if there is one"""
    torch_threads: int = 0
    """CPU threads of PyTorch; 0: PyTorch's default"""
    num_workers: int = 0
    """processes that step the environments, each a share of them; 0: one per CPU core"""
    track: bool = False
    """mirror TensorBoard to Weights & Biases (needs wandb)"""

    def __post_init__(self):
        self.tasks = self.tasks or tuple(BENCHMARKS[self.benchmark])
        if self.total_timesteps is None:
            self.total_timesteps = 2_000_000 * len(self.tasks)
        if self.eval_interval is None:
            self.eval_interval = 40_000 * len(self.tasks)

        def expect(ok, message):
            if not ok:
                raise ValueError(message)  # tyro prints it

        for name, value in vars(self).items():
            if isinstance(value, int | float):
                expect(0 <= value < math.inf, f"{name} = {value}: expected 0 or more")
        for name in ("num_steps", "update_epochs", "num_minibatches", "eval_interval"):
            expect(vars(self)[name] > 0, f"{name}: expected more than 0")
        unknown = " ".join(set(self.tasks) - set(MT50_V3))
        expect(not unknown, f"tasks: Meta-World has no {unknown}")
        expect(len(set(self.tasks)) == len(self.tasks), "tasks: expected each once")
        expect(self.seed < 2**32, "seed: expected less than 2^32")
        expect(self.num_steps % EPISODE_STEPS == 0, "num_steps: expected a multiple of 500")
        expect(self.num_minibatches <= self.num_steps, "num_minibatches: at most num_steps")
        expect(max(self.gamma, self.gae_lambda) <= 1, "gamma, gae_lambda: expected 0 to 1")
        expect(min(self.hidden_sizes, default=0) > 0, "hidden_sizes: expected positive widths")
        expect(0 < self.eval_episodes <= NUM_GOALS, "eval_episodes: expected 1 to 50")

        self.collect_steps = len(self.tasks) * self.num_steps
        self.num_collects = max(1, self.total_timesteps // self.collect_steps)


# --- Networks: Table B.1, Sections 4.1 and 4.2


def linear(n_in, n_out, gain, bias=True):
    """A layer with orthogonal weights and zero biases (our choice)."""
    layer = nn.Linear(n_in, n_out, bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(sizes, output_gain, layer_norm=False):
    """Linear and ReLU in turn (Table B.1); with layer_norm Linear, LayerNorm, ReLU (4.2)."""
    layers = []
    for n_in, n_out in pairwise(sizes[:-1]):
        # No bias beside LayerNorm, which has its own (B.2)
        layers.append(linear(n_in, n_out, gain=math.sqrt(2), bias=not layer_norm))
        if layer_norm:
            layers.append(nn.LayerNorm(n_out))
        layers.append(nn.ReLU())
    layers.append(linear(sizes[-2], sizes[-1], output_gain))
    return nn.Sequential(*layers)


class PopArt(nn.Module):
    """Statistics of each task's returns, and the heads that go with them (Section 4.1).

    The critic's output h gives task k's normalised value u = c_k h + b_k and raw value
    V = sigma_k u + mu_k.
    """

    def __init__(self, num_tasks):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_tasks))  # c_k
        self.bias = nn.Parameter(torch.zeros(num_tasks))  # b_k
        for name in ("count", "mu", "m2"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("sigma", torch.ones(num_tasks, dtype=torch.float64))

    def raw_values(self, h):
        """The raw values of the critic's outputs h, [K, E, ...]."""
        u = self.scale[:, None, None] * h + self.bias[:, None, None]
        return (self.sigma[:, None, None] * u + self.mu[:, None, None]).to(h.dtype)

    def normalize(self, x):
        """Raw values or returns [K, E, ...] in the tasks' normalised spaces."""
        return ((x - self.mu[:, None, None]) / self.sigma[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def update(self, returns):
        """Merges raw returns [K, E, 500] into the statistics; raw values stay as they were."""
        returns = returns.flatten(1).double()
        batch_count = returns.shape[1]
        batch_mu = returns.mean(1)
        batch_m2 = ((returns - batch_mu[:, None]) ** 2).sum(1)

        # Eq. (B.1): the merge of Chan, Golub and LeVeque
        count = self.count + batch_count
        delta = batch_mu - self.mu
        mu = self.mu + delta * batch_count / count
        m2 = self.m2 + batch_m2 + delta**2 * self.count * batch_count / count
        sigma = (m2 / count).sqrt().clamp_min(SIGMA_FLOOR)

        # Preserve outputs: the new head and statistics give the V of the old ones
        self.scale.copy_(self.sigma * self.scale / sigma)
        self.bias.copy_((self.sigma * self.bias + self.mu - mu) / sigma)
        self.count = count
        self.mu = mu
        self.m2 = m2
        self.sigma = sigma


class Agent(nn.Module):
    """Actor and critic, shared by all tasks, and the rows of what belongs to one task."""

    def __init__(self, num_tasks, hidden_sizes):
        super().__init__()
        sizes = [OBS_DIM + num_tasks, *hidden_sizes]
        self.actor = mlp([*sizes, ACTION_DIM], output_gain=0.01)
        self.critic = mlp([*sizes, 1], output_gain=1.0, layer_norm=True)
        self.log_std = nn.Parameter(torch.zeros(num_tasks, ACTION_DIM))  # Table B.1: per task
        self.popart = PopArt(num_tasks)

    def log_probs(self, obs, actions):
        """[K, E, 500], of actions [K, E, 500, 4] in obs [K, E, 500, obs_dim]."""
        means = torch.stack([self.actor(task_obs) for task_obs in obs])
        policy = Normal(means, self.log_std.exp()[:, None, None])
        return policy.log_prob(actions).sum(-1)

    def values(self, obs):
        """Raw values [K, E, 501] of obs [K, E, 501, obs_dim]; task by task to bound memory."""
        h = torch.stack([self.critic(task_obs).squeeze(-1) for task_obs in obs])
        return self.popart.raw_values(h)


# --- One task's losses: Eq. (1)


def forward(net, shared, obs):
    """What net gives for obs with the parameters in the vector shared [D] in place of its own."""
    named = dict(net.named_parameters())
    parts = shared.split([p.numel() for p in named.values()])
    parameters = {name: part.view_as(named[name]) for name, part in zip(named, parts)}
    return functional_call(net, parameters, obs)


def policy_loss(shared, row, mb, net, args):
    """One task's clipped surrogate and entropy bonus.

    shared: the actor's parameters [D]; row: the task's row; mb: the task's samples, [n, ...].
    """
    # Section 2: advantages normalised within the task
    advantages = mb["advantages"]
    advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)

    policy = Normal(forward(net, shared, mb["obs"]), row["log_std"].exp())
    log_ratio = policy.log_prob(mb["actions"]).sum(-1) - mb["old_log_probs"]  # [n]
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    surrogate = torch.min(ratio * advantages, clipped_ratio * advantages).mean()
    entropy = policy.entropy().sum(-1).mean()
    loss = -surrogate - args.ent_coef * entropy

    return loss, {
        "losses/policy": loss,
        "losses/entropy": entropy,
        "losses/approx_kl": (ratio - 1 - log_ratio).mean(),
        "losses/ratio_clip_fraction": ((ratio - 1).abs() > args.clip_coef).float().mean(),
    }


def value_loss(shared, row, mb, net, args):
    """One task's squared value error, in the task's normalised space (Section 4.1)."""
    h = forward(net, shared, mb["obs"]).squeeze(-1)  # [n]
    values = row["scale"] * h + row["bias"]
    change = (values - mb["old_values"]).clamp(-args.clip_coef, args.clip_coef)
    errors = (values - mb["returns"]) ** 2
    clipped_errors = (mb["old_values"] + change - mb["returns"]) ** 2
    clip_active = (clipped_errors > errors) & args.clip_vloss  # stops the gradient (Remark 2)
    loss = args.vf_coef * 0.5 * torch.where(clip_active, clipped_errors, errors).mean()

    return loss, {
        "losses/value": loss,
        "losses/value_clip_fraction": clip_active.float().mean(),
    }


# --- All tasks' gradients, and how to combine them


class Gradients(NamedTuple):
    """The K tasks' gradients on one side, actor's or critic's."""

    shared: torch.Tensor  # J [K, D]: row k is g_k, of the parameters that all tasks share
    rows: dict  # {name: [K, ...]}: of the parameters that belong to one task


def per_task_gradients(loss, net, rows, mb, args):
    """Differentiates the losses of all K tasks at once. mb and rows: {name: [K, ...]}.

    Returns Gradients, and loss's metrics [K].
    """
    shared = parameters_to_vector(net.parameters())  # [D]
    one_task = grad(partial(loss, net=net, args=args), argnums=(0, 1), has_aux=True)
    all_tasks = vmap(one_task, in_dims=(None, 0, 0))  # row k and mb k are task k's
    gradients, metrics = all_tasks(shared, rows, mb)
    return Gradients(*gradients), metrics


def gram(J):
    """G = J J^T (Section 2) in fp64 (C.5). J: [K, D]."""
    G = 0.0
    for block in J.split(65_536, dim=1):  # some columns at a time: no fp64 copy of J
        block = block.double()
        G = G + block @ block.T
    return G


def set_gradients(net, rows, gradients, weights):
    """Sets .grad: of the shared parameters d = sum_k w_k g_k, of row k w_k times its own (B.4)."""
    weights = torch.from_numpy(weights).to(gradients.shared, non_blocking=True)  # [K]
    d = weights @ gradients.shared  # [D]
    parameters = list(net.parameters())
    for parameter, part in zip(parameters, d.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)
    for name, parameter in rows.items():
        parameter.grad = torch.einsum("k,k...->k...", weights, gradients.rows[name])


def gradient_metrics(side, G, weights):
    """What Section 3 measures, items (D1) to (D3). G: [K, K], weights: [K]."""
    norms = np.sqrt(G.diagonal())
    cosines = G / np.outer(norms, norms).clip(1e-60)
    num_pairs = max(G.size - len(G), 1)
    spread = norms.max() / norms.min(where=norms > 0, initial=math.inf)  # of those not zero
    contributions = weights * norms
    return {
        f"{side}_gradient_norm": norms,
        f"gradients/{side}_log10_norm_spread": np.log10(max(spread, 1)),
        f"gradients/{side}_mean_cosine": (cosines.sum() - cosines.trace()) / num_pairs,
        f"gradients/{side}_top1_share": contributions.max() / contributions.sum().clip(1e-60),
        f"gradients/{side}_combined_norm": np.sqrt((weights @ G @ weights).clip(1e-60)),
    }


def fairgrad_metrics(fairgrad, G):
    """The solver's report, and each task's w_k (G w)_k, which Theorem 1 makes 1."""
    return {
        "fairgrad_weight": fairgrad.weights,
        "fairgrad_contribution": fairgrad.weights * (G @ fairgrad.weights),
        "fairgrad/kkt_residual": fairgrad.residual,
        "fairgrad/newton_iterations": fairgrad.iterations,
        "fairgrad/used_scipy_fallback": fairgrad.used_scipy_fallback,
        "fairgrad/solver_fallback": fairgrad.solver_fallback,
    }


# --- The update: Algorithm C.1


def gae(rewards, values, args):
    """Advantages A and returns R = A + V (Section 2), [K, E, 500] each.

    rewards: [K, E, 500]; values: [K, E, 501], with that of the last observation.
    """
    next_values = values[..., 1:].clone()
    next_values[..., -1] *= args.bootstrap_truncation
    deltas = rewards + args.gamma * next_values - values[..., :-1]
    advantages = torch.zeros_like(rewards)
    advantage = 0.0
    for t in reversed(range(rewards.shape[-1])):
        advantage = deltas[..., t] + args.gamma * args.gae_lambda * advantage
        advantages[..., t] = advantage
    return advantages, advantages + values[..., :-1]


def stratified_minibatches(num_tasks, args, rng, device):
    """Shuffles each task's samples and deals them out, to all tasks the same number at a time.

    Every sample comes once. Returns indices [K, n] into [K, T], one for each minibatch.
    """
    order = np.tile(np.arange(args.num_steps), (num_tasks, 1))
    order = rng.permuted(order, axis=1)  # [K, T]
    order = torch.from_numpy(order).to(device)  # once a pass: the loop waits for no transfer
    return order.tensor_split(args.num_minibatches, dim=1)


@torch.no_grad()  # torch.func takes the gradients
def update_minibatch(agent, optimizer, mb, rng, args):
    """Algorithm C.1 from line 9 on. mb: {name: [K, n, ...]}. Returns metrics."""
    actor_rows = {"log_std": agent.log_std}  # row k belongs to task k
    critic_rows = dict(agent.popart.named_parameters())

    # Lines 9 to 12: each task's losses and their gradients
    actor, policy_metrics = per_task_gradients(policy_loss, agent.actor, actor_rows, mb, args)
    critic, value_metrics = per_task_gradients(value_loss, agent.critic, critic_rows, mb, args)

    # Section 2: all that the combiners need to know of the gradients
    grams = torch.stack([gram(actor.shared), gram(critic.shared)])
    actor_gram, critic_gram = grams.cpu().numpy()  # [K, K] each; the only wait for the GPU
    stop_if_not_finite(actor_gram + critic_gram, args.tasks)

    # Line 13: FairGrad for the critic, G w = 1 / w (Theorem 1)
    fairgrad = solve_fairgrad(critic_gram, alpha=1.0)
    critic_weights = fairgrad.weights

    # Line 14: FairGrad for the actor
    actor_fairgrad = solve_fairgrad(actor_gram, alpha=1.0)
    actor_weights = actor_fairgrad.weights

    # PPO's gradient clip, each side on its own, and Adam's step
    set_gradients(agent.critic, critic_rows, critic, critic_weights)
    set_gradients(agent.actor, actor_rows, actor, actor_weights)
    clip_grad_norm_([*agent.critic.parameters(), *critic_rows.values()], args.max_grad_norm)
    clip_grad_norm_([*agent.actor.parameters(), *actor_rows.values()], args.max_grad_norm)
    optimizer.step()

    metrics = {tag: x.mean() for tag, x in (policy_metrics | value_metrics).items()}
    metrics |= gradient_metrics("actor", actor_gram, actor_weights)
    metrics |= gradient_metrics("critic", critic_gram, critic_weights)
    metrics |= fairgrad_metrics(fairgrad, critic_gram)
    of_actor = fairgrad_metrics(actor_fairgrad, actor_gram)
    metrics |= {f"actor_{tag}": x for tag, x in of_actor.items()}
    return metrics


def stop_if_not_finite(G, tasks):
    bad = ~np.isfinite(G.diagonal())
    if bad.any():
        names = " ".join(np.array(tasks)[bad])
        fail(f"gradients that are not finite: {names}; the last checkpoint is good")


@torch.no_grad()
def update(agent, optimizer, rollout, rng, args):
    """Algorithm C.1 on one rollout. Returns metrics."""
    device = agent.log_std.device
    obs = torch.from_numpy(rollout.obs).to(device)  # [K, E, 501, obs_dim]
    actions = torch.from_numpy(rollout.actions).to(device)  # [K, E, 500, 4]
    rewards = torch.from_numpy(rollout.rewards).to(device)  # [K, E, 500]
    old_log_probs = agent.log_probs(obs[:, :, :-1], actions)  # the rollout's in all repeats
    task = torch.arange(len(obs), device=device)[:, None]  # [K, 1]
    totals = {}

    for repeat in bar(args.update_epochs, desc="update"):
        # Values, advantages and returns of the critic as it is now (Table B.1)
        values = agent.values(obs)  # [K, E, 501], raw
        advantages, returns = gae(rewards, values, args)  # [K, E, 500] each
        old_values = values[..., :-1]
        if repeat == 0:
            unexplained = (returns - old_values).var((1, 2)) / returns.var((1, 2))  # [K]
            agent.popart.update(returns)  # line 3
        batch = {
            "obs": obs[:, :, :-1],
            "actions": actions,
            "old_log_probs": old_log_probs,
            "advantages": advantages,
            "returns": agent.popart.normalize(returns),
            "old_values": agent.popart.normalize(old_values),
        }
        samples = {name: x.flatten(1, 2) for name, x in batch.items()}  # [K, T, ...]

        # Line 6: each sample once, in minibatches with equal shares of all tasks
        for index in stratified_minibatches(len(obs), args, rng, device):  # [K, n]
            mb = {name: x[task, index] for name, x in samples.items()}  # [K, n, ...]
            metrics = update_minibatch(agent, optimizer, mb, rng, args)
            for tag, x in metrics.items():
                totals[tag] = totals.get(tag, 0.0) + x

    num_updates = args.update_epochs * args.num_minibatches
    metrics = {tag: x / num_updates for tag, x in totals.items()}
    metrics["explained_variance"] = 1 - unexplained
    metrics["popart_mu"] = agent.popart.mu
    metrics["popart_sigma"] = agent.popart.sigma
    return metrics


# --- Environments


class Episodes(NamedTuple):
    """Whole episodes: [K, ...] of a round, [K, E, ...] of a rollout."""

    obs: np.ndarray  # [..., 501, 39 + K]: the last one too, and the task's one-hot
    actions: np.ndarray  # [..., 500, 4], before the environment clips them
    rewards: np.ndarray  # [..., 500]
    success: np.ndarray  # [...]: at any step


def play_round(envs, actor, one_hot, noise):
    """An episode in each of n environments, in step. Returns Episodes, [n, ...]. See Envs.play."""
    n, num_tasks = one_hot.shape
    obs = np.zeros((n, EPISODE_STEPS + 1, OBS_DIM + num_tasks), np.float32)
    obs[:, :, OBS_DIM:] = one_hot[:, None]
    actions = np.zeros((n, EPISODE_STEPS, ACTION_DIM), np.float32)
    rewards = np.zeros((n, EPISODE_STEPS), np.float32)
    success = np.zeros(n, bool)
    for i, env in enumerate(envs):
        obs[i, 0, :OBS_DIM], _ = env.reset()

    for t in range(EPISODE_STEPS):
        playing = range(n) if noise is not None else np.flatnonzero(~success)
        if len(playing) == 0:
            break
        mean = actor(torch.from_numpy(obs[:, t])).numpy()  # [n, 4]
        actions[:, t] = mean if noise is None else mean + noise[:, t]
        for i in playing:
            next_obs, reward, _, _, info = envs[i].step(actions[i, t].clip(-1, 1))
            obs[i, t + 1, :OBS_DIM] = next_obs
            rewards[i, t] = reward
            success[i] |= bool(info["success"])
    return Episodes(obs, actions, rewards, success)


@torch.no_grad()
def environment_worker(pipe, args, task_ids):
    """A process with an environment for each of its tasks and a copy of the actor.

    Nothing crosses between processes while a round of episodes is played.
    """
    torch.set_num_threads(1)
    benchmarks = [metaworld.MT1(args.tasks[k], seed=args.seed) for k in task_ids]  # 50 goals each
    envs = []
    for k, benchmark in zip(task_ids, benchmarks):
        env_class = benchmark.train_classes[args.tasks[k]]
        envs.append(env_class(reward_function_version=args.reward_version))
    actor = Agent(len(args.tasks), args.hidden_sizes).actor
    one_hot = np.eye(len(args.tasks), dtype=np.float32)[task_ids]

    with suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            parameters, goals, noise = pipe.recv()
            vector_to_parameters(torch.from_numpy(parameters), actor.parameters())
            for env, benchmark, goal in zip(envs, benchmarks, goals):
                env.set_task(benchmark.train_tasks[goal])
            pipe.send(play_round(envs, actor, one_hot, noise))


class Envs:
    """Meta-World, one environment for each task, shared out among a few processes."""

    def __init__(self, args):
        context = get_context("spawn")
        num_tasks = len(args.tasks)
        num_workers = min(args.num_workers or os.cpu_count(), num_tasks)
        self.workers = []
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers leave Ctrl-C to us
        for w in range(num_workers):
            task_ids = np.arange(w, num_tasks, num_workers)  # neighbours are often slow
            pipe, worker_pipe = context.Pipe()
            process = context.Process(
                target=environment_worker,
                args=(worker_pipe, args, task_ids),
                name=" ".join(args.tasks[k] for k in task_ids),
                daemon=True,
            )
            process.start()
            worker_pipe.close()
            self.workers.append((pipe, process, task_ids))
        signal.signal(signal.SIGINT, handler)

    def play(self, agent, goals, noise=None):
        """An episode of each task on goals [K], with noise [K, 500, 4] on the actor's mean.

        Without noise an episode ends at its first success. Returns Episodes, [K, ...].
        """
        parameters = parameters_to_vector(agent.actor.parameters()).detach().cpu().numpy()
        episodes = [None] * len(goals)  # of each task
        try:
            for pipe, process, task_ids in self.workers:
                worker_noise = None if noise is None else noise[task_ids]
                pipe.send((parameters, goals[task_ids], worker_noise))
            for pipe, process, task_ids in self.workers:
                for k, *episode in zip(task_ids, *pipe.recv()):
                    episodes[k] = episode
        except (EOFError, ConnectionError):
            process.join(10)
            fail(f"the process of {process.name} died ({process.exitcode})")
        return Episodes(*(np.stack(x) for x in zip(*episodes)))


def collect_episodes(envs, agent, rng, args):
    """Algorithm C.1's rollout: T steps of each task, on random goals. Returns it and metrics."""
    std = agent.log_std.detach().exp().cpu().numpy()  # [K, 4]
    rounds = []
    for _ in bar(args.num_steps // EPISODE_STEPS, desc="rollout"):
        goals = rng.integers(NUM_GOALS, size=len(std))
        noise = rng.standard_normal((len(std), EPISODE_STEPS, ACTION_DIM), np.float32)
        rounds.append(envs.play(agent, goals, std[:, None] * noise))
    rollout = Episodes(*(np.stack(x, axis=1) for x in zip(*rounds)))  # [K, E, ...]

    # For an episode with a number that is not finite another one of its task stands in
    finite = np.isfinite(rollout.obs).all(axis=(2, 3))  # [K, E]
    finite &= np.isfinite(rollout.rewards).all(axis=2)
    for k, e in np.argwhere(~finite):
        if not finite[k].any():
            fail(f"no finite episode of {args.tasks[k]}; the last checkpoint is good")
        print(f"{SCRIPT}: replaced an episode of {args.tasks[k]}: not finite", file=sys.stderr)
        for x in rollout:
            x[k, e] = x[k, finite[k].argmax()]

    return rollout, {
        "train_success": rollout.success.mean(1),
        "train_return": rollout.rewards.sum(2).mean(1),
        "replaced_episodes": (~finite).sum(),
    }


# --- Evaluation, logging, checkpoint


def evaluation_due(collects, args):
    """Whether the last of so many collects passed a multiple of --eval-interval or ends the run."""
    passed = collects * args.collect_steps % args.eval_interval < args.collect_steps
    return passed or collects == args.num_collects


def evaluate(envs, agent, args, writer, step):
    """The mean action, once on each goal (B.1). Logs success and returns rows of evals.csv."""
    rounds = []
    for goal in bar(args.eval_episodes, desc="evaluation"):
        episodes = envs.play(agent, np.full(len(args.tasks), goal))
        rounds.append((episodes.success, episodes.rewards.sum(1, dtype=float)))
    success, returns = np.mean(rounds, axis=0).round(4)  # [K] each

    worst_first = np.sort(success)
    metrics = {"eval_success": success}
    for k in (1, 3, 5, 10, 20):
        if k <= len(success):
            metrics[f"eval/success_worst_{k}"] = worst_first[:k].mean()
    log(writer, args.tasks, step, metrics)
    return [
        (step, task, args.eval_episodes, rate, mean_return)
        for task, rate, mean_return in zip(args.tasks, success.tolist(), returns.tolist())
    ]


def log(writer, tasks, step, metrics):
    """Logs numbers, and K numbers under the tasks' names with their mean."""
    for tag, value in metrics.items():
        value = torch.as_tensor(value).cpu().numpy()
        if value.ndim == 0:
            writer.add_scalar(tag, value, step)
            continue
        writer.add_scalar(f"{tag}/mean", value.mean(), step)
        for task, x in zip(tasks, value):
            writer.add_scalar(f"{tag}/{task}", x, step)


def fail(message):
    print(f"{SCRIPT}: error: {message}", file=sys.stderr)
    sys.exit(2)


def print_progress(args, progress):
    """A line with the time left: training and evaluation each at its own last pace."""
    collects = progress["collects"]
    coming = range(collects + 1, args.num_collects + 1)
    seconds_left = len(coming) * progress["collect_seconds"]
    seconds_left += sum(evaluation_due(c, args) for c in coming) * progress["evaluation_seconds"]
    success = np.mean([row[3] for row in progress["evals"][-len(args.tasks) :]])
    speed = args.collect_steps / progress["collect_seconds"]
    print(
        f"collect {collects}/{args.num_collects}, {collects * args.collect_steps:,} steps, "
        f"success {success:.3f}, {speed:,.0f} steps/s, ETA {seconds_left / 3600:.2f} h",
        flush=True,
    )


def write_file(path, data):
    """Writes aside, then moves into place: a kill or a full disk leaves the old file whole."""
    with open(f"{path}.tmp", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


def save(args, agent, optimizer, progress):
    """Writes evals.csv and the checkpoint."""
    run_dir = Path(args.run_dir)
    table = [("step", "task", "episodes", "success_rate", "mean_return"), *progress["evals"]]
    lines = [",".join(map(str, row)) + "\n" for row in table]
    write_file(run_dir / "evals.csv", "".join(lines).encode())

    buffer = BytesIO()
    checkpoint = {
        "script": SCRIPT,
        "args": asdict(args) | {"run_dir": None},  # where the run is found
        "progress": progress,
        "agent": agent.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, buffer)
    collects = progress["collects"]
    if args.keep_checkpoints_every and collects % args.keep_checkpoints_every == 0:
        write_file(run_dir / f"checkpoint_{collects:05}.pt", buffer.getbuffer())
    write_file(run_dir / "checkpoint.pt", buffer.getbuffer())


def load_checkpoint(path):
    """The run's flags and its checkpoint. Loading one executes nothing."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["script"] != SCRIPT:
            raise ValueError(f"continue it with {checkpoint['script']}.py")
        return Args(**checkpoint["args"]), checkpoint
    except Exception as error:  # torch.load raises many kinds for files that are not its own
        fail(f"{path} is not a whole checkpoint of {SCRIPT}.py: {error!r}")


def parse_args():
    """Returns the flags and, where --run-dir has a run, its checkpoint."""
    args = tyro.cli(Args, description=__doc__)
    if args.run_dir is None:
        now = time.strftime("%Y%m%d-%H%M%S")
        args.run_dir = f"runs/{now}__{SCRIPT}__MT{len(args.tasks)}__{args.seed}"
    path = Path(args.run_dir, "checkpoint.pt")
    if not os.path.exists(path):  # False where the name is too long, too
        return args, None

    saved, checkpoint = load_checkpoint(path)
    args = tyro.cli(Args, default=saved, description=__doc__)  # flags not given are the run's
    names = [field.name for field in fields(Args)]
    contradictions = [
        f"{name} = {getattr(args, name)} (the run has {getattr(saved, name)})"
        for name in names[: names.index("total_timesteps")]  # the others may change
        if getattr(args, name) != getattr(saved, name)
    ]
    if contradictions:
        fail(f"{args.run_dir} has a run with other flags: {', '.join(contradictions)}")
    return args, checkpoint


def open_run(args, first_step):
    """Claims the run directory, writes args.json and starts TensorBoard there."""
    if args.track and not find_spec("wandb"):
        fail("--track: pip install wandb first, or go on with --no-track")
    run_dir = Path(args.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        fcntl.flock(os.open(run_dir, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # to the end
    except BlockingIOError:
        fail(f"--run-dir {run_dir}: another process is at this run")
    except OSError as error:
        fail(f"--run-dir {run_dir}: {error.strerror}; expected a directory to write to")

    git = f"git -C '{Path(__file__).parent}'"
    flags = {
        "script": SCRIPT,
        **asdict(args),
        "commit": subprocess.getoutput(f"{git} rev-parse HEAD"),
        "edits": subprocess.getoutput(f"{git} diff HEAD -- ':/*.py'"),
        "packages": {package.name: package.version for package in distributions()},
    }
    write_file(run_dir / "args.json", json.dumps(flags, indent=2).encode())
    if args.track:
        import wandb

        name = run_dir.name
        wandb.init(name=name, dir=run_dir, config=flags, resume="auto", sync_tensorboard=True)
    return SummaryWriter(run_dir, purge_step=first_step)


# --- Main


def main(args, checkpoint):
    torch.set_num_threads(args.torch_threads or torch.get_num_threads())
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    agent = Agent(len(args.tasks), args.hidden_sizes).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=args.adam_eps)
    progress = {"collects": 0, "evals": [], "collect_seconds": 0.0, "evaluation_seconds": 0.0}
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        progress = checkpoint["progress"]
    if progress["collects"] >= args.num_collects:
        print(f"{SCRIPT}: {args.run_dir} is finished; a larger --total-timesteps continues it")
        return

    num_parameters = sum(p.numel() for p in agent.parameters())
    print(f"{SCRIPT}: K = {len(args.tasks)}, {num_parameters:,} parameters, device {device}")
    print(f"to continue: python {sys.argv[0]} --run-dir {args.run_dir}", flush=True)
    writer = open_run(args, progress["collects"] * args.collect_steps + bool(checkpoint))
    envs = Envs(args)

    def evaluate_and_save():
        collects = progress["collects"]
        if evaluation_due(collects, args):
            began = time.time()
            step = collects * args.collect_steps
            progress["evals"] += evaluate(envs, agent, args, writer, step)
            progress["evaluation_seconds"] = time.time() - began
        writer.flush()
        save(args, agent, optimizer, progress)

    if not checkpoint:
        evaluate_and_save()
    while progress["collects"] < args.num_collects:
        rng = np.random.default_rng([args.seed, progress["collects"]])  # to continue is exact
        began = time.time()
        rollout, metrics = collect_episodes(envs, agent, rng, args)
        collected = time.time()
        metrics |= update(agent, optimizer, rollout, rng, args)
        ended = time.time()

        progress["collects"] += 1
        progress["collect_seconds"] = ended - began
        metrics["speed/rollout_steps_per_second"] = args.collect_steps / (collected - began)
        metrics["speed/update_steps_per_second"] = args.collect_steps / (ended - collected)
        log(writer, args.tasks, progress["collects"] * args.collect_steps, metrics)
        evaluate_and_save()
        print_progress(args, progress)
    print(f"{SCRIPT}: {args.run_dir} is finished")


if __name__ == "__main__":
    args, checkpoint = parse_args()
    try:
        main(args, checkpoint)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
        sys.exit(f"\nstopped; to continue: python {sys.argv[0]} --run-dir {args.run_dir}")
    except OSError as error:
        fail(f"{error}; the last checkpoint is good")
