"""TOPPO on Meta-World (arXiv 2605.11473): multi-task PPO with a balanced critic.

The critic has LayerNorm (LN-c), learns returns that PopArt normalises task by task, and follows
FairGrad's combination of the K per-task gradients; the actor follows PCGrad's (Section 4).

Shapes: K tasks, T steps per task and collect in E episodes, n samples per task in a minibatch,
D shared parameters in a network.
"""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

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

Normal.set_default_validate_args(False)  # checks would wait for the GPU, and vmap refuses them
bar = partial(trange, leave=False, disable=None)  # progress, in a terminal only


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
    """bootstrap an episode's end by the critic's value (our choice; Meta-World+: 0)"""
    clip_coef: float = 0.2
    """epsilon of the ratio clip and of the value clip (Table B.1)"""
    clip_vloss: bool = True
    """clip the value loss (B.2: enabled, unlike Meta-World+'s MT50 example)"""
    vf_coef: float = 0.001
    """weight of the value loss (Table B.1)"""
    ent_coef: float = 0.005
    """weight of the entropy bonus (Table B.1)"""
    max_grad_norm: float = 1.0
    """largest norm of the actor's and of the critic's combined gradient (Table B.1)"""
    hidden_sizes: tuple[int, ...] = (400, 400, 400)
    """units in each hidden layer of actor and critic (Table B.1)"""

    # From here on flags do not change the algorithm: they may differ when a run is continued
    total_timesteps: int | None = None
    """budget in environment steps, in whole collects; None: 2 M per task (Section 5.1)"""
    eval_interval: int | None = None
    """environment steps between evaluations; None: 40,000 per task (Table D.11)"""
    eval_episodes: int = 50
    """episodes per task and evaluation, each on a different one of its 50 goals (B.1)"""
    keep_checkpoints_every: int = 0
    """keep every n-th collect's checkpoint, as checkpoint_00010.pt; 0: none"""
    run_dir: str | None = None
    """directory of the run, which is continued if it has one; None: a new one under runs/"""
    cuda: bool = True
    """compute on the GPU if there is one"""
    torch_threads: int = 0
    """CPU threads of PyTorch; 0: PyTorch's default"""
    num_workers: int = 0
    """processes that step the environments, each a share of them; 0: one per CPU core"""
    track: bool = False
    """mirror TensorBoard to Weights & Biases (needs wandb)"""

    def __post_init__(self):
        self.tasks = tuple(self.tasks or BENCHMARKS[self.benchmark])
        if self.total_timesteps is None:
            self.total_timesteps = 2_000_000 * len(self.tasks)
        if self.eval_interval is None:
            self.eval_interval = 40_000 * len(self.tasks)
        if self.run_dir is None:
            now = time.strftime("%Y%m%d-%H%M%S")
            self.run_dir = f"runs/{now}__{SCRIPT}__MT{len(self.tasks)}__{self.seed}"

        unknown = set(self.tasks) - set(MT50_V3)
        numbers = [x for x in vars(self).values() if isinstance(x, int | float)]
        expected = {
            f"tasks: Meta-World has no {' '.join(unknown)}": not unknown,
            "tasks: expected each once": len(set(self.tasks)) == len(self.tasks),
            "expected finite numbers of 0 or more": all(0 <= x < math.inf for x in numbers),
            "num_steps: expected a multiple of 500": self.num_steps % EPISODE_STEPS == 0,
            "update_epochs: expected more than 0": self.update_epochs > 0,
            "eval_interval: expected more than 0": self.eval_interval > 0,
            "num_minibatches: expected 1 to num_steps": 1 <= self.num_minibatches <= self.num_steps,
            "eval_episodes: expected 1 to 50": 1 <= self.eval_episodes <= NUM_GOALS,
            "run_dir: expected the name of a directory": self.run_dir != "",
        }
        for message, holds in expected.items():
            if not holds:
                raise ValueError(message)  # tyro prints it

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
        # LayerNorm has a bias of its own (B.2)
        layers.append(linear(n_in, n_out, gain=math.sqrt(2), bias=not layer_norm))
        if layer_norm:
            layers.append(nn.LayerNorm(n_out))
        layers.append(nn.ReLU())
    layers.append(linear(sizes[-2], sizes[-1], output_gain))
    return nn.Sequential(*layers)


class PopArt(nn.Module):
    """Statistics of each task's returns, and an affine head for each task (Section 4.1).

    From the critic's output h: normalised value u = c_k h + b_k, raw value V = sigma_k u + mu_k.
    """

    def __init__(self, num_tasks):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_tasks))  # c_k
        self.bias = nn.Parameter(torch.zeros(num_tasks))  # b_k
        for name in ("count", "mu", "m2"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("sigma", torch.ones(num_tasks, dtype=torch.float64))

    def raw_values(self, h):
        """Raw values from the critic's outputs h [K, E, ...]."""
        u = self.scale[:, None, None] * h + self.bias[:, None, None]
        return (self.sigma[:, None, None] * u + self.mu[:, None, None]).to(h.dtype)

    def normalize(self, x):
        """Raw values or returns [K, E, ...] in the normalised space of their task."""
        return ((x - self.mu[:, None, None]) / self.sigma[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def update(self, returns):
        """Merges raw returns [K, E, 500] into the statistics, without changing any raw value."""
        returns = returns.flatten(1).double()
        batch_count = returns.shape[1]
        batch_mu = returns.mean(1)
        batch_m2 = ((returns - batch_mu[:, None]) ** 2).sum(1)

        # Eq. (B.1): the merge of Chan, Golub and LeVeque
        count = self.count + batch_count
        delta = batch_mu - self.mu
        mu = self.mu + delta * batch_count / count
        m2 = self.m2 + batch_m2 + delta**2 * self.count * batch_count / count
        sigma = (m2 / count).sqrt().clamp_min(1e-4)  # our floor

        # Preserve outputs: the new heads undo the new statistics, so that no V changes
        self.scale.copy_(self.sigma * self.scale / sigma)
        self.bias.copy_((self.sigma * self.bias + self.mu - mu) / sigma)
        self.count = count
        self.mu = mu
        self.m2 = m2
        self.sigma = sigma


class Agent(nn.Module):
    """Actor and critic, which all tasks share, and the parameters of single tasks."""

    def __init__(self, num_tasks, hidden_sizes):
        super().__init__()
        sizes = [OBS_DIM + num_tasks, *hidden_sizes]
        self.actor = mlp([*sizes, ACTION_DIM], output_gain=0.01)
        self.critic = mlp([*sizes, 1], output_gain=1.0, layer_norm=True)
        self.log_std = nn.Parameter(torch.zeros(num_tasks, ACTION_DIM))  # Table B.1: per task
        self.popart = PopArt(num_tasks)
        if set(self.actor.parameters()) & set(self.critic.parameters()):
            raise ValueError("actor and critic share a layer, which would follow the actor only")

    def log_probs(self, obs, actions):
        """Log-probabilities [K, E, 500] of actions [K, E, 500, 4] in obs [K, E, 500, obs_dim]."""
        means = torch.stack([self.actor(task_obs) for task_obs in obs])
        policy = Normal(means, self.log_std.exp()[:, None, None])
        return policy.log_prob(actions).sum(-1)

    def values(self, obs):
        """Raw values [K, E, 501] of obs [K, E, 501, obs_dim], one task at a time to save memory."""
        h = torch.stack([self.critic(task_obs).squeeze(-1) for task_obs in obs])
        return self.popart.raw_values(h)


# --- One task's losses: Eq. (1)


def policy_loss(shared, task_params, mb, net, args):
    """One task's clipped surrogate and entropy bonus.

    shared: the network's parameters; task_params: the task's own; mb: its samples, [n, ...].
    """
    # Section 2: normalised within the task; equal ones are 0, where rounding would make them 1
    advantages = mb["advantages"]
    differ = advantages.amax() > advantages.amin()
    advantages = differ * (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)

    policy = Normal(functional_call(net, shared, mb["obs"]), task_params["log_std"].exp())
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


def value_loss(shared, task_params, mb, net, args):
    """One task's squared value error, in the task's normalised space (Section 4.1)."""
    h = functional_call(net, shared, mb["obs"]).squeeze(-1)  # [n]
    values = task_params["scale"] * h + task_params["bias"]
    change = (values - mb["old_values"]).clamp(-args.clip_coef, args.clip_coef)
    errors = (values - mb["returns"]) ** 2
    clipped_errors = (mb["old_values"] + change - mb["returns"]) ** 2
    # The larger error counts; where the clip makes it so there is no gradient (Remark 2)
    clipped = (clipped_errors > errors) & args.clip_vloss
    loss = args.vf_coef * 0.5 * torch.where(clipped, clipped_errors, errors).mean()

    return loss, {
        "losses/value": loss,
        "losses/value_clip_fraction": (clipped & (change.abs() >= args.clip_coef)).float().mean(),
    }


# --- All tasks' gradients, and how to combine them


def trainable(net):
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def per_task_gradients(loss, net, task_params, mb, args):
    """Differentiates all K tasks' losses at once. task_params and mb: {name: [K, ...]}.

    Returns J [K, D], whose row k is g_k; the gradients of task_params; the metrics, [K] each.
    """
    one_task = grad(partial(loss, net=net, args=args), argnums=(0, 1), has_aux=True)
    all_tasks = vmap(one_task, in_dims=(None, 0, 0))  # shared is the same for all tasks
    (gradients, task_gradients), metrics = all_tasks(trainable(net), task_params, mb)
    J = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    return J, task_gradients, metrics


def gram(J):
    """G = J J^T (Section 2) in fp64 (C.5), in blocks of columns to save memory."""
    blocks = (block.double() for block in J.split(65_536, dim=1))
    return sum(block @ block.T for block in blocks)


def pcgrad_weights(G, rng):
    """PCGrad (Section C.3) from the Gram matrix G [K, K]. Returns the weights [K].

    Each g_i meets the other g_j in a random order. Where what is left of it opposes g_j, it loses
    its component along g_j. d is the mean of the projected gradients.
    """
    num_tasks = len(G)
    coefficients = np.eye(num_tasks)  # row i: the projected g_i as a sum of all g_j
    for i in range(num_tasks):
        inner = G[i].copy()  # [K]: inner products of the projected g_i with each g_j
        for j in rng.permutation(num_tasks):
            if j != i and inner[j] < 0:
                step = inner[j] / G[j, j]
                coefficients[i, j] -= step
                inner -= step * G[j]
    return coefficients.mean(axis=0)


def set_gradients(net, task_params, J, task_gradients, weights):
    """Sets .grad: d = sum_k w_k g_k if shared, w_k times its gradient if task k's own (B.4)."""
    weights = torch.from_numpy(weights).to(J, non_blocking=True)  # [K]
    d = weights @ J  # [D]
    shared = trainable(net).values()
    for parameter, part in zip(shared, d.split([p.numel() for p in shared])):
        parameter.grad = part.view_as(parameter)
    for name, parameter in task_params.items():
        if parameter.requires_grad:
            parameter.grad = torch.einsum("k,k...->k...", weights, task_gradients[name])


def gradient_metrics(side, G, weights):
    """What Section 3 measures (D1 to D3). G: [K, K], weights: [K]."""
    norms = np.sqrt(G.diagonal())
    cosines = G / np.outer(norms, norms).clip(1e-60)
    num_pairs = max(G.size - len(G), 1)
    spread = norms.max() / norms.min(where=norms > 0, initial=math.inf)
    shares = weights * norms / (weights @ norms).clip(1e-60)
    contributions = weights * (G @ weights)  # <w_k g_k, d>: 1 with FairGrad (Theorem 1)
    return {
        f"{side}_gradient_norm": norms,
        f"{side}_contribution": contributions,
        f"gradients/{side}_log10_norm_spread": np.log10(max(spread, 1)),
        f"gradients/{side}_mean_cosine": (cosines.sum() - cosines.trace()) / num_pairs,
        f"gradients/{side}_top1_share": shares.max(),
        f"gradients/{side}_combined_norm": np.sqrt(contributions.sum().clip(1e-60)),
    }


# --- The update: Algorithm C.1


def gae(rewards, values, args):
    """Advantages A and returns R = A + V [K, E, 500]. rewards: [K, E, 500], values: [K, E, 501]."""
    next_values = values[..., 1:].clone()  # the last: of the observation after the last step
    next_values[..., -1] *= args.bootstrap_truncation
    advantages = rewards + args.gamma * next_values - values[..., :-1]  # of one step: delta_t
    for t in reversed(range(rewards.shape[-1] - 1)):
        advantages[..., t] += args.gamma * args.gae_lambda * advantages[..., t + 1]
    return advantages, advantages + values[..., :-1]


def stratified_minibatches(num_tasks, args, rng, device):
    """Indices [K, n] for each minibatch of a pass: row k has n of task k's T samples."""
    order = np.tile(np.arange(args.num_steps), (num_tasks, 1))
    order = rng.permuted(order, axis=1)  # [K, T]
    order = torch.from_numpy(order).to(device)  # one transfer for all minibatches
    return order.tensor_split(args.num_minibatches, dim=1)


def update_minibatch(agent, optimizer, mb, rng, args):
    """Algorithm C.1 from line 9 on. mb: {name: [K, n, ...]}. Returns metrics."""
    # Parameters whose entry k belongs to task k alone
    log_std = {"log_std": agent.log_std}
    head = {"scale": agent.popart.scale, "bias": agent.popart.bias}

    # Lines 9 to 12: each task's losses and their gradients
    actor_J, log_std_gradients, policy_metrics = per_task_gradients(
        policy_loss, agent.actor, log_std, mb, args
    )
    critic_J, head_gradients, value_metrics = per_task_gradients(
        value_loss, agent.critic, head, mb, args
    )

    # Section 2: the combiners need only the inner products of the gradients
    grams = torch.stack([gram(actor_J), gram(critic_J)])
    actor_gram, critic_gram = grams.cpu().numpy()  # [K, K] each; the only wait for the GPU
    finite = np.isfinite(actor_gram + critic_gram).diagonal()
    if not finite.all():
        names = " ".join(np.array(args.tasks)[~finite])
        fail(f"gradients that are not finite: {names}")

    # Line 13: FairGrad for the critic, G w = 1 / w (Theorem 1)
    fairgrad = solve_fairgrad(critic_gram, alpha=1.0)
    critic_weights = fairgrad.weights

    # Line 14: PCGrad for the actor
    actor_weights = pcgrad_weights(actor_gram, rng)

    # PPO's gradient clip, each side on its own, and Adam's step
    set_gradients(agent.critic, head, critic_J, head_gradients, critic_weights)
    set_gradients(agent.actor, log_std, actor_J, log_std_gradients, actor_weights)
    clip_grad_norm_([*agent.critic.parameters(), *head.values()], args.max_grad_norm)
    clip_grad_norm_([*agent.actor.parameters(), *log_std.values()], args.max_grad_norm)
    optimizer.step()

    metrics = {tag: x.mean() for tag, x in (policy_metrics | value_metrics).items()}
    metrics |= gradient_metrics("actor", actor_gram, actor_weights)
    metrics |= gradient_metrics("critic", critic_gram, critic_weights)
    metrics |= {f"fairgrad/{name}": x for name, x in fairgrad._asdict().items()}
    return metrics


@torch.no_grad()  # torch.func takes the gradients
def update(agent, optimizer, rollout, rng, args):
    """Algorithm C.1 on one rollout. Returns metrics."""
    device = agent.log_std.device
    obs = torch.from_numpy(rollout["obs"]).to(device)  # [K, E, 501, obs_dim]
    actions = torch.from_numpy(rollout["actions"]).to(device)  # [K, E, 500, 4]
    rewards = torch.from_numpy(rollout["rewards"]).to(device)  # [K, E, 500]
    old_log_probs = agent.log_probs(obs[:, :, :-1], actions)  # of the policy that played
    task = torch.arange(len(obs), device=device)[:, None]  # [K, 1]
    totals = {}

    for repeat in bar(args.update_epochs, desc="update"):
        # Advantages and returns by the critic as it is now (Table B.1: recompute advantage)
        values = agent.values(obs)  # [K, E, 501], raw
        advantages, returns = gae(rewards, values, args)  # [K, E, 500] each
        old_values = values[..., :-1]
        if repeat == 0:
            explained = 1 - (returns - old_values).var((1, 2)) / returns.var((1, 2))  # [K]
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

        # Line 6: task-stratified minibatches
        for index in stratified_minibatches(len(obs), args, rng, device):  # [K, n]
            mb = {name: x[task, index] for name, x in samples.items()}  # [K, n, ...]
            metrics = update_minibatch(agent, optimizer, mb, rng, args)
            for tag, x in metrics.items():
                totals[tag] = totals.get(tag, 0.0) + x

    num_updates = args.update_epochs * args.num_minibatches
    metrics = {tag: x / num_updates for tag, x in totals.items()}
    metrics["explained_variance"] = explained.nan_to_num().clamp_min(-1)  # at least -1, never NaN
    metrics["popart_mu"] = agent.popart.mu
    metrics["popart_sigma"] = agent.popart.sigma
    return metrics


# --- Environments


def play_round(envs, actor, one_hot, noise):
    """Plays one episode in each of n environments. Returns {name: [n, ...]}.

    noise: [n, 500, 4], on the actor's mean; None: no noise, and a success ends the episode.
    """
    n, num_tasks = one_hot.shape
    obs = np.zeros((n, EPISODE_STEPS + 1, OBS_DIM + num_tasks), np.float32)
    obs[:, :, OBS_DIM:] = one_hot[:, None]
    actions = np.zeros((n, EPISODE_STEPS, ACTION_DIM), np.float32)
    rewards = np.zeros((n, EPISODE_STEPS), np.float32)
    success = np.zeros(n, bool)  # at any step of the episode
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
            success[i] |= info["success"] > 0
    return {"obs": obs, "actions": actions, "rewards": rewards, "success": success}


@torch.no_grad()
def worker(pipe, args, task_ids):
    """A process that plays whole episodes of its tasks, with a copy of the actor."""
    torch.set_num_threads(1)
    tasks = [args.tasks[k] for k in task_ids]
    benchmarks = [metaworld.MT1(task, seed=args.seed) for task in tasks]  # 50 goals each
    envs = [
        benchmark.train_classes[task](reward_function_version=args.reward_version)
        for task, benchmark in zip(tasks, benchmarks)
    ]
    actor = Agent(len(args.tasks), args.hidden_sizes).actor
    one_hot = np.eye(len(args.tasks), dtype=np.float32)[task_ids]

    with suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            parameters, goals, noise = pipe.recv()
            vector_to_parameters(torch.from_numpy(parameters), actor.parameters())
            for env, benchmark, goal in zip(envs, benchmarks, goals):
                env.set_task(benchmark.train_tasks[goal])
            pipe.send(play_round(envs, actor, one_hot, noise))


def start_workers(args):
    """Starts processes that share the tasks. Returns a pipe to each and the tasks it has."""
    context = get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    num_workers = min(args.num_workers or cores, len(args.tasks))
    workers = []
    with suppress(ValueError):  # in a thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this: Ctrl-C is for us
    for w in range(num_workers):
        task_ids = np.arange(w, len(args.tasks), num_workers)  # slow tasks are often neighbours
        pipe, worker_pipe = context.Pipe()
        context.Process(target=worker, args=(worker_pipe, args, task_ids), daemon=True).start()
        worker_pipe.close()
        workers.append((pipe, task_ids))
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return workers


def play(workers, actor, goals, noise=None):
    """Plays an episode of each task k, on its goal goals[k]. Returns {name: [K, ...]}."""
    parameters = parameters_to_vector(actor.parameters()).detach().cpu().numpy()
    try:
        for pipe, task_ids in workers:
            pipe.send((parameters, goals[task_ids], None if noise is None else noise[task_ids]))
        rounds = [pipe.recv() for pipe, _ in workers]
    except (EOFError, ConnectionError):
        fail("a process with environments died, perhaps for lack of memory")
    order = np.argsort(np.concatenate([task_ids for _, task_ids in workers]))
    return {name: np.concatenate([r[name] for r in rounds])[order] for name in rounds[0]}


def collect_rollout(workers, agent, rng, args):
    """Plays T steps of each task on random goals (Algorithm C.1). Returns {name: [K, E, ...]}."""
    std = agent.log_std.detach().exp().cpu().numpy()  # [K, 4]
    rounds = []
    for _ in bar(args.num_steps // EPISODE_STEPS, desc="rollout"):
        goals = rng.integers(NUM_GOALS, size=len(std))
        noise = rng.standard_normal((len(std), EPISODE_STEPS, ACTION_DIM), np.float32)
        rounds.append(play(workers, agent.actor, goals, std[:, None] * noise))
    return {name: np.stack([r[name] for r in rounds], axis=1) for name in rounds[0]}


# --- Evaluation, logging, checkpoint


def evaluate(workers, agent, args, writer, step):
    """Plays the mean action, once on each goal (B.1). Returns rows for evals.csv."""
    rounds = []
    for goal in bar(args.eval_episodes, desc="evaluation"):
        episodes = play(workers, agent.actor, np.full(len(args.tasks), goal))
        rounds.append((episodes["success"], episodes["rewards"].sum(1, dtype=float)))
    success, returns = np.mean(rounds, axis=0).round(4)  # [K] each

    metrics = {"eval_success": success, "eval/success_worst_5": np.sort(success)[:5].mean()}
    log(writer, args.tasks, step, metrics)
    print(f"{step:,} steps, success {success.mean():.3f}", flush=True)
    rows = zip(args.tasks, success.tolist(), returns.tolist())
    return [(step, task, args.eval_episodes, *scores) for task, *scores in rows]


def log(writer, tasks, step, metrics):
    """Logs a number as it is, and K numbers one per task and as their mean."""
    for tag, value in metrics.items():
        value = torch.as_tensor(value).cpu().numpy()
        if value.ndim:
            for task, x in zip(tasks, value):
                writer.add_scalar(f"{tag}/{task}", x, step)
            tag = f"{tag}/mean"
        writer.add_scalar(tag, value.mean(), step)


def fail(message):
    sys.exit(f"{SCRIPT}: error: {message}")


def save(args, agent, optimizer, collects, evals):
    """Writes evals.csv and the checkpoint. A kill leaves a whole checkpoint, old or new."""
    run_dir = Path(args.run_dir)
    table = [("step", "task", "episodes", "success_rate", "mean_return"), *evals]
    lines = [",".join(map(str, row)) + "\n" for row in table]
    (run_dir / "evals.csv").write_text("".join(lines))
    checkpoint = {
        "script": SCRIPT,
        "args": asdict(args),
        "collects": collects,
        "evals": evals,
        "agent": agent.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with open(run_dir / "checkpoint.tmp", "wb") as file:
        torch.save(checkpoint, file)
    if args.keep_checkpoints_every and collects % args.keep_checkpoints_every == 0:
        shutil.copy(run_dir / "checkpoint.tmp", run_dir / f"checkpoint_{collects:05}.pt")
    os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")


def load_checkpoint(run_dir):
    """The checkpoint of the run in run_dir, None where there is none. Loading executes no code."""
    path = Path(run_dir, "checkpoint.pt")
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, "cpu", weights_only=True)
        checkpoint["args"] = Args(**checkpoint["args"])
    except Exception as error:  # torch.load raises many kinds
        fail(f"{path} is damaged, or not of {SCRIPT}.py: {error!r}")
    if checkpoint["script"] != SCRIPT:
        fail(f"{run_dir} has a run of {checkpoint['script']}.py, which continues it")
    return checkpoint


def parse_args():
    """The flags. Those that are not given are the run's, if --run-dir has one."""
    args = tyro.cli(Args, description=__doc__)
    checkpoint = load_checkpoint(args.run_dir)
    if checkpoint:
        args = tyro.cli(Args, default=checkpoint["args"], description=__doc__)
    return args


def open_run(args, first_collect):
    """Writes flags and commit to args.json. Returns TensorBoard's writer."""
    commit = None
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
    with suppress(OSError):  # there is no git
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    flags = {"script": SCRIPT, "commit": commit, **asdict(args)}
    name = f"args_{first_collect - 1:05}.json" if first_collect else "args.json"
    os.makedirs(args.run_dir, exist_ok=True)
    Path(args.run_dir, name).write_text(json.dumps(flags, indent=2))
    if args.track:
        try:
            import wandb

            wandb.init(dir=args.run_dir, config=flags, resume="auto", sync_tensorboard=True)
        except Exception as error:  # not installed, or no login
            fail(f"--track: {error}")
    return SummaryWriter(args.run_dir, purge_step=first_collect * args.collect_steps)


# --- Main


def main(args):
    checkpoint = load_checkpoint(args.run_dir)
    first_collect = checkpoint["collects"] + 1 if checkpoint else 0  # collect 0 only evaluates
    if checkpoint:
        names = list(asdict(args))
        for name in names[: names.index("total_timesteps")]:
            if getattr(args, name) != getattr(checkpoint["args"], name):
                fail(f"{args.run_dir} has a run with another {name}")
    if first_collect > args.num_collects:
        print(f"{SCRIPT}: {args.run_dir} is finished; a larger --total-timesteps continues it")
        return

    torch.set_num_threads(args.torch_threads or torch.get_num_threads())
    torch.manual_seed(args.seed)
    device = "cuda" if args.cuda and torch.cuda.is_available() else "cpu"
    agent = Agent(len(args.tasks), args.hidden_sizes).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=args.adam_eps)
    evals = checkpoint["evals"] if checkpoint else []  # rows of evals.csv
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])

    writer = open_run(args, first_collect)
    workers = start_workers(args)
    start = f"after {first_collect - 1} collects" if checkpoint else "new run"
    budget = f"{args.total_timesteps:,} steps of MT{len(args.tasks)}"
    print(f"{SCRIPT}: {start}, {budget}, seed {args.seed}, on {device}")
    print("to continue:", shlex.join(["python", __file__, "--run-dir", args.run_dir]), flush=True)

    for collect in range(first_collect, args.num_collects + 1):
        step = collect * args.collect_steps
        if collect:
            rng = np.random.default_rng([args.seed, collect - 1])  # so that continuing is exact
            began = time.time()
            rollout = collect_rollout(workers, agent, rng, args)
            metrics = update(agent, optimizer, rollout, rng, args)
            seconds = time.time() - began
            metrics["train_success"] = rollout["success"].mean(1)
            metrics["train_return"] = rollout["rewards"].sum(2).mean(1)
            metrics["speed/steps_per_second"] = args.collect_steps / seconds
            log(writer, args.tasks, step, metrics)
            hours = (args.num_collects - collect) * seconds / 3600
            print(f"{step:,} steps, {hours:.1f} hours to go", flush=True)

        # At the first collect at or past each multiple of eval_interval, and at the end
        if step % args.eval_interval < args.collect_steps or collect == args.num_collects:
            evals += evaluate(workers, agent, args, writer, step)
        writer.flush()
        save(args, agent, optimizer, collect, evals)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (KeyboardInterrupt, OSError) as error:  # Ctrl-C, or a full disk
        fail(str(error) or repr(error))
