"""TOPPO on Meta-World (arXiv 2605.11473): multi-task PPO with LN-c, PopArt and FairGrad in the critic and PCGrad in the actor.

The critic learns returns that PopArt normalises task by task and follows FairGrad's combination of the K per-task gradients,
the actor PCGrad's (Section 4).
Shapes: K tasks, T steps per task and collect in E episodes, n the largest share of a task in a minibatch.
"""

import ctypes
import fcntl
import json
import math
import os
import signal
import sys
import time
import warnings
import zipfile
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import BytesIO, StringIO
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # OpenMP threads that wait by spinning crawl on cores that others use too
if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):  # glibc: keep the 25 MB buffers that each minibatch frees,
    ctypes.CDLL(None).mallopt(-3, 1 << 25), ctypes.CDLL(None).mallopt(-1, 1 << 30)  # or it pays page faults for them anew
import metaworld
import mujoco
import numpy as np
import torch
import torch.nn as nn
import tyro
from metaworld.env_dict import MT10_V3, MT25_V3, MT50_V3
from torch.distributions import Normal
from torch.utils.tensorboard import SummaryWriter

from fairgrad_solver import solve_fairgrad

SCRIPT = Path(__file__).stem
BENCHMARKS = {"MT10": MT10_V3, "MT25": MT25_V3, "MT50": MT50_V3}  # dicts from task names
EPISODE_STEPS = 500  # every episode has this length and ends by truncation only
NUM_GOALS = 50  # training goals per task
PANELS = {"success": "(eval|train)_success/mean", "tails": "eval/success_worst_.*",  # of TensorBoard; which tags each shows
          "critic health": "explained_variance/mean|gradients/critic_(mean_cosine|top1_share)", "speed": "speed/.*"}
MAX_SKIPPED = 10  # episodes and minibatches of a collect that a task may spoil with numbers that are not finite (our choice)
SIGMA_FLOOR = 1e-4  # of PopArt (our choice)
OBS_DIM, ACTION_DIM = 39, 4  # 18 numbers now, 18 of the step before, 3 of the goal; the task's one-hot comes behind (B.1)
Normal.set_default_validate_args(False)  # the checks would wait for the GPU


@dataclass
class Args:
    seed: int = 1
    """seed of the initial weights, goals, action noise and minibatches (Table B.1: 10 seeds reported)"""
    benchmark: str = "MT50"
    """Meta-World task set: MT10, MT25 or MT50 (Section 5.1: MT10 and MT50)"""
    tasks: tuple[str, ...] = ()
    """Meta-World task names, such as reach-v3 door-open-v3, in place of a benchmark"""
    reward_version: str = "v2"
    """Meta-World's reward functions, v1 or v2 (Section 5.1: v2 unless labelled V1)"""
    total_timesteps: int | None = None
    """budget in environment steps, all tasks together; None: 2,000,000 per task, 100 M on MT50 (Section 5.1)"""
    num_steps: int = 10_000
    """environment steps per task and collect, a multiple of an episode's 500 (Table B.1, from Meta-World+)"""
    update_epochs: int = 16
    """passes over each collect, "PPO repeats per collect" (Table B.1, from Meta-World+)"""
    num_minibatches: int = 32
    """task-stratified minibatches per pass (Table B.1: minibatch size = collect / 32)"""
    learning_rate: float = 3e-4
    """Adam's step size, constant (Table B.1, from Meta-World+; Section 5.2: no schedule)"""
    gamma: float = 0.99
    """discount per step (Table B.1, from Meta-World+)"""
    gae_lambda: float = 0.97
    """lambda of generalized advantage estimation (Table B.1, from Meta-World+)"""
    bootstrap_truncation: bool = True
    """value an episode's last observation by the critic (our choice); --no-bootstrap-truncation: as 0, like Meta-World+"""
    clip_coef: float = 0.2
    """epsilon of the ratio clip and of the value clip (Table B.1, from Meta-World+)"""
    clip_vloss: bool = True
    """clip the value loss (B.2: enabled, unlike Meta-World+'s MT50 example)"""
    vf_coef: float = 0.001
    """weight of the value loss (Table B.1, from Meta-World+)"""
    ent_coef: float = 0.005
    """weight of the entropy bonus (Table B.1, from Meta-World+)"""
    max_grad_norm: float = 1.0
    """norm that the actor's and the critic's combined gradients are each clipped to (Table B.1, from Meta-World+)"""
    hidden_sizes: tuple[int, ...] = (400, 400, 400)
    """units in each hidden layer of actor and critic (Table B.1)"""
    eval_interval: int | None = None
    """environment steps between evaluations; None: 400,000 on MT10, else 20,000 per task, 1 M on MT50 (Table D.11)"""
    eval_episodes: int = 50
    """episodes per task and evaluation, each on another one of the task's 50 training goals (B.1: all 50)"""
    run_dir: str | None = None
    """where the run's files go; None: runs/TIME__SCRIPT__MTK__SEED"""
    resume: str | None = None
    """run directory or checkpoint.pt to continue, with its flags; auto: --run-dir or the newest run in runs/ with these flags"""
    dump_gradients_every: int = 0
    """collects between dumps of the per-task gradients of a collect's first minibatch, to gradients/ (Section 3, D.2); 0: none"""
    cuda: bool = True
    """compute on the GPU if there is one"""
    torch_threads: int = 0
    """CPU threads of PyTorch; 0: PyTorch's default"""
    num_envs_per_task: int = 1
    """environments of each task, which share out its episodes of a collect: for more than K workers (Section 5.1: 1)"""
    num_workers: int = 0
    """processes that step the environments, each a share of them; 0: one per CPU core"""
    track: bool = False
    """mirror TensorBoard to Weights & Biases (needs wandb; WANDB_PROJECT and WANDB_ENTITY say where)"""


def check(ok, message):
    if not ok:
        print(f"{SCRIPT}: error: {message}", file=sys.stderr)
        sys.exit(2)


def parse_args():
    """Returns the checked flags, the task names and the checkpoint to resume from, or None."""
    try:
        with redirect_stderr(StringIO()) as box:  # tyro draws one around an error, which is to be a line like all others
            args, checkpoint = tyro.cli(Args, description=__doc__), None
    except SystemExit as end:
        check(not end.code, " ".join(box.getvalue().split("│ ─")[0].translate(dict.fromkeys(map(ord, "│╭╮╰╯─"))).split()))
        raise  # --help
    names = list(args.tasks or BENCHMARKS.get(args.benchmark, ()))
    args.total_timesteps = 2_000_000 * len(names) if args.total_timesteps is None else args.total_timesteps
    if args.eval_interval is None:
        args.eval_interval = 400_000 if names == list(MT10_V3) else 20_000 * len(names)
    free = {"total_timesteps", "run_dir", "resume", "cuda", "torch_threads", "num_envs_per_task", "num_workers", "track"}
    if args.resume == "auto":
        flags = json.loads(json.dumps({"script": SCRIPT, **asdict(args), **dict.fromkeys(free)}))
        runs = {p.parent for p in Path(args.run_dir or "runs").glob("checkpoint*.pt" if args.run_dir else "*/checkpoint*.pt")}
        same = [r for r in runs if args.run_dir or {**json.loads((r / "args.json").read_text()), **dict.fromkeys(free)} == flags]
        args.resume = max(same, key=os.path.getmtime, default=None)
    if args.resume is not None:
        folder, problems = Path(args.resume), ""
        for path in [folder / "checkpoint.pt", folder / "checkpoint.previous.pt"] if folder.is_dir() else [folder]:
            try:
                assert zipfile.ZipFile(path).testzip() is None  # compares checksums, as torch.load does not
                checkpoint = dict(torch.load(path, map_location="cpu", weights_only=True))  # executes nothing
                saved, names = Args(**{**checkpoint["args"], "run_dir": str(path.parent)}), checkpoint["tasks"]
                break
            except Exception as error:  # torch.load raises many kinds for files that torch.save did not write
                problems += f"; {path} is not a whole checkpoint of {SCRIPT}.py ({type(error).__name__})"
        else:
            check(False, f"--resume {args.resume}{problems}")
        check(checkpoint["script"] == SCRIPT, f"--resume {args.resume}: a run of {checkpoint['script']}.py; resume it with that")
        args = tyro.cli(Args, default=saved)  # flags not given keep the checkpoint's values; runs/x/ is runs/x
        for name, given, kept in ((n, str(vars(args)[n]), str(v)) for n, v in vars(saved).items() if n not in free - {"run_dir"}):
            check(Path(given) == Path(kept), f"--{name.replace('_', '-')} {given} contradicts the checkpoint's {kept}")
        print(f"{SCRIPT}: continuing from {path}{problems}", flush=True)
    for name, ok, expected in [
        ("benchmark", args.tasks or args.benchmark in BENCHMARKS, "MT10, MT25 or MT50"),
        ("tasks", len({*MT50_V3} & {*names}) == len(names), f"Meta-World's names, each once, not {[*{*names} - {*MT50_V3}]}"),
        ("reward_version", args.reward_version in ("v1", "v2"), "v1 or v2"),
        ("seed", 0 <= args.seed < 2**32, "0 to 2^32 - 1, the seeds that Meta-World takes"),
        ("num_steps", args.num_steps > 0 == args.num_steps % EPISODE_STEPS, "a whole number of 500-step episodes"),
        ("num_envs_per_task", args.num_envs_per_task > 0 == args.num_steps // EPISODE_STEPS % args.num_envs_per_task,
         f"a divisor of {args.num_steps // EPISODE_STEPS}, a task's episodes in a collect"),
        ("total_timesteps", args.total_timesteps >= args.num_steps * len(names), "at least one collect: tasks x --num-steps"),
        ("num_minibatches", 0 < args.num_minibatches <= args.num_steps, f"1 to {args.num_steps}, a task's samples"),
        ("eval_episodes", 0 < args.eval_episodes <= NUM_GOALS, f"1 to {NUM_GOALS}, a task's training goals"),
        ("hidden_sizes", min(args.hidden_sizes, default=0) > 0, "one or more positive widths"),
        ("torch_threads", 0 <= args.torch_threads <= os.cpu_count(), f"0 to {os.cpu_count()}, the number of CPU cores"),
        *((n, 0 < vars(args)[n] < math.inf, "> 0") for n in ("update_epochs", "learning_rate", "max_grad_norm", "eval_interval")),
        *((n, 0 <= vars(args)[n] < math.inf, "0 or more") for n in ("clip_coef", "vf_coef", "ent_coef", "num_workers")),
        *((n, 0 <= vars(args)[n] <= 1, "0 to 1") for n in ("gamma", "gae_lambda")),
        ("track", not args.track or find_spec("wandb"), "Weights & Biases to be installed: pip install wandb"),
        ("run_dir", checkpoint or not any(Path(args.run_dir or os.devnull).glob("checkpoint*.pt")), "a directory without a run"),
    ]:
        check(ok, f"--{name.replace('_', '-')} {getattr(args, name)}: expected {expected}")
    return args, names, checkpoint


@torch.no_grad()
def environment_worker(pipe, names, tasks, reward_version, seed, hidden_sizes):
    """A process that holds an environment for each of tasks, n indices into names, and a copy of the actor, so that nothing
    crosses between processes while an episode runs. It obeys (the actor's parameters, goals [n, R], noise [n, R, 500, 4]) by
    playing R episodes in each environment, all n in step; noise None: without noise, each episode to its first success."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to handle
    mujoco.set_mju_user_warning(lambda text: warnings.warn(f"{names[tasks[i]]}: {text.split(' Time')[0]}", stacklevel=2))
    torch.set_num_threads(1)
    benchmarks = [metaworld.MT1(names[k], seed=seed) for k in tasks]  # each draws its task's 50 goals
    envs = [mt1.train_classes[names[k]](reward_function_version=reward_version) for mt1, k in zip(benchmarks, tasks)]
    actor, one_hot = Agent(len(names), hidden_sizes).actor, torch.eye(len(names))[tasks]
    with suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            parameters, goals, noise = pipe.recv()
            nn.utils.vector_to_parameters(torch.from_numpy(parameters), actor.parameters())
            obs = np.zeros((*goals.shape, EPISODE_STEPS + 1, OBS_DIM), np.float32)
            actions = np.zeros((*goals.shape, EPISODE_STEPS, ACTION_DIM), np.float32)
            rewards, success = np.zeros(actions.shape[:3], np.float32), np.zeros(goals.shape, bool)
            for e in range(goals.shape[1]):
                for i, env in enumerate(envs):
                    env.set_task(benchmarks[i].train_tasks[goals[i, e]])
                    obs[i, e, 0], _ = env.reset()
                playing = range(len(envs))
                for t in range(EPISODE_STEPS):
                    mean = actor(torch.cat([torch.from_numpy(obs[:, e, t]), one_hot], dim=1)).numpy()  # [n, 4]
                    actions[:, e, t] = mean if noise is None else mean + noise[:, e, t]
                    for i in playing:
                        obs[i, e, t + 1], rewards[i, e, t], _, _, info = envs[i].step(actions[i, e, t].clip(-1, 1))
                        success[i, e] |= bool(info["success"])
                    playing = [i for i in playing if noise is not None or not success[i, e]]
                    if not playing or pipe.poll():  # the main process says nothing before it has its answer, or it is gone
                        break
            pipe.send((obs, actions, rewards, success))


class TaskEnvs:
    """Meta-World environments, num_envs for each task, shared out among a few processes."""

    def __init__(self, names, args):
        self.num_envs, num_envs, context = args.num_envs_per_task, len(names) * args.num_envs_per_task, get_context("spawn")
        self.workers, num_workers = [], min(args.num_workers or os.cpu_count(), num_envs)
        for share in (np.arange(w, num_envs, num_workers) for w in range(num_workers)):  # dealt out: neighbours are often slow
            pipe, worker_end = context.Pipe()
            job = worker_end, names, share // self.num_envs, args.reward_version, args.seed, args.hidden_sizes
            process = context.Process(target=environment_worker, args=job, daemon=True, name=" ".join(names[k] for k in job[2]))
            process.start(), worker_end.close()
            self.workers.append((pipe, process, share))

    def play(self, agent, goals, noise=None):
        """An episode on each of goals [K, E], with noise [K, E, 500, 4] on the actor's mean or, without it, to the first success.
        Returns obs [K, E, 501, 39], the last one included, actions [K, E, 500, 4], rewards [K, E, 500] and success [K, E]."""
        parameters, shape = nn.utils.parameters_to_vector(agent.actor.parameters()).detach().cpu().numpy(), goals.shape
        goals = np.pad(goals, ((0, 0), (0, -shape[1] % self.num_envs))).reshape(shape[0] * self.num_envs, -1)  # [K num_envs, R]
        noise = noise if noise is None else noise.reshape(*goals.shape, EPISODE_STEPS, ACTION_DIM)
        for pipe, _, share in self.workers:
            pipe.send((parameters, goals[share], None if noise is None else noise[share]))
        order = np.argsort(np.concatenate([share for _, _, share in self.workers]))
        results = [np.concatenate(parts)[order] for parts in zip(*(pipe.recv() for pipe, _, _ in self.workers))]
        return [x.reshape(shape[0], -1, *x.shape[2:])[:, : shape[1]] for x in results]


def mlp(sizes, output_gain, layer_norm=False):
    """Linear and ReLU in turn (Table B.1); orthogonal weights, gain sqrt(2) in hidden layers, zero biases (our choice)."""
    layers = []
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:])):
        hidden = i < len(sizes) - 2
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        nn.init.orthogonal_(layers[-2].weight, math.sqrt(2) if hidden else output_gain)
        nn.init.zeros_(layers[-2].bias)
        if layer_norm and hidden:
            layers[-2].bias = None  # LayerNorm subtracts the mean, and the bias with it (4.2, B.2)
            layers.insert(-1, nn.LayerNorm(n_out))
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """Actor and critic, shared by all tasks. Task k's own are row k of log_std and PopArt's head w_k, b_k and statistics."""

    def __init__(self, num_tasks, hidden_sizes):
        super().__init__()
        self.actor = mlp([OBS_DIM + num_tasks, *hidden_sizes, ACTION_DIM], output_gain=0.01)
        self.critic = mlp([OBS_DIM + num_tasks, *hidden_sizes, 1], output_gain=1.0, layer_norm=True)
        self.log_std = nn.Parameter(torch.zeros(num_tasks, ACTION_DIM))  # Table B.1: per task
        self.register_buffer("success_ema", torch.zeros(num_tasks))  # of training, for the gradient dumps
        self.head_weight, self.head_bias = nn.Parameter(torch.ones(num_tasks)), nn.Parameter(torch.zeros(num_tasks))
        for name, start in ("count", 0), ("mu", 0), ("m2", 0), ("sigma", 1):
            self.register_buffer(name, torch.full((num_tasks,), start, dtype=torch.float64))

    @torch.no_grad()
    def values(self, obs):
        """Raw values of obs [K, ..., obs_dim], task by task to bound memory. Returns [K, ...]."""
        heads = zip(obs, self.head_weight, self.head_bias, self.sigma, self.mu)
        return torch.stack([sigma * (w * self.critic(o).squeeze(-1) + b) + mu for o, w, b, sigma, mu in heads])

    def normalize(self, x):
        """Raw values or returns [K, T] in the tasks' normalised spaces (4.1)."""
        return ((x - self.mu[:, None]) / self.sigma[:, None]).float()

    @torch.no_grad()
    def update_popart(self, returns):
        """Merges raw returns [K, T] into the statistics of all returns so far and leaves raw values as they were (4.1)."""
        m, returns = returns.shape[1], returns.double()
        batch_mu = returns.mean(1)
        batch_m2 = ((returns - batch_mu[:, None]) ** 2).sum(1)
        delta, count = batch_mu - self.mu, self.count + m  # Eq. (B.1), the merge of Chan, Golub and LeVeque
        mu = self.mu + delta * m / count
        m2 = self.m2 + batch_m2 + delta**2 * self.count * m / count
        sigma = (m2 / count).sqrt().clamp_min(SIGMA_FLOOR)
        self.head_bias.copy_((self.sigma * self.head_bias + self.mu - mu) / sigma)
        self.head_weight.copy_(self.head_weight * self.sigma / sigma)
        for buffer, value in (self.count, count), (self.mu, mu), (self.m2, m2), (self.sigma, sigma):
            buffer.copy_(value)


def forward_with_tape(net, x):
    """Returns net(x) and the (layer, input, output) of each layer that has parameters."""
    tape = []
    for layer in net:
        y = layer(x)
        if not isinstance(layer, nn.ReLU):
            tape.append((layer, x.detach(), y))
        x = y
    return x, tape


def per_task_gradients(losses, tape, own):
    """The gradients of K losses from one backward pass of their sum. Loss k must depend on slice k of the tape's [K, n, ...]
    inputs alone, and on row k of each parameter in own. A shared parameter's gradient is a sum over samples; what task k's
    samples add to it is task k's. Returns J, rows g_k, by columns: [K, *p.shape] for each shared p, and the gradients of own."""
    deltas = torch.autograd.grad(losses.sum(), [y for _, _, y in tape] + own)
    grads = []
    for (layer, x, _), delta in zip(tape, deltas):  # x [K, n, in], delta [K, n, out]
        is_norm = isinstance(layer, nn.LayerNorm)
        grads.append((delta * nn.functional.layer_norm(x, x.shape[-1:])).sum(1) if is_norm else delta.mT @ x)  # weight
        grads += [delta.sum(1)] if layer.bias is not None else []
    return grads, deltas[len(tape) :]


def gram(grads):
    """G = J J^T (Section 2) in fp64 (C.5) of J = grads, [K, ...] each, in column blocks that stay in cache. Returns [K, K]."""
    return sum(b @ b.T for b in (columns.double() for g in grads for columns in g.flatten(1).split(1 << 16, dim=1)))


def pcgrad_weights(gram, rng):
    """PCGrad in coefficients: each g_i meets the other gradients g_j in a random order and loses its component along those that
    it has a negative inner product with (Section C.3). gram [K, K]. Returns the weights [K] of the mean of the projected g_i."""
    num_tasks = len(gram)
    orders = rng.permuted(np.tile(np.arange(num_tasks), (num_tasks, 1)), axis=1)
    coefficients = np.eye(num_tasks)  # row i: the projected g_i in terms of all g_j
    for others in orders.T:  # [K]; others[i] is the gradient that g_i meets next
        inner = (coefficients * gram[others]).sum(1)
        i = np.flatnonzero((inner < 0) & (others != np.arange(num_tasks)))
        coefficients[i, others[i]] -= inner[i] / gram[others[i], others[i]]
    return coefficients.mean(0)  # none is negative (Theorem C.1)


def set_combined_gradient(shared, grads, own, own_grads, weights):
    """Sets .grad: d = sum_k w_k g_k, and w_k times row k for the tasks' own (B.4). grads: [K, ...] each, weights [K]."""
    weights = weights.float()
    for p, g in zip(shared, grads):
        p.grad = torch.einsum("k,k...->...", weights, g)
    for p, g in zip(own, own_grads):
        p.grad = torch.einsum("k,k...->k...", weights, g)


def gae(rewards, values, gamma, gae_lambda):
    """Advantages A and returns R = A + V, both [..., 500], of rewards [..., 500] and values [..., 501] of whole episodes."""
    advantages, advantage = torch.zeros_like(rewards), 0.0
    deltas = rewards + gamma * values[..., 1:] - values[..., :-1]
    for t in reversed(range(rewards.shape[-1])):
        advantages[..., t] = advantage = deltas[..., t] + gamma * gae_lambda * advantage
    return advantages, advantages + values[..., :-1]


def deal_minibatches(num_tasks, num_steps, num_minibatches, rng):
    """Shuffles each task's samples and deals them to the M minibatches like cards, one task after the other: every sample
    once, and shares of tasks in a minibatch that differ by at most one. Returns indices [M, K, n] into a task's samples and
    weights [M, K, n], 1 / (the task's share) or, in a slot that only pads, 0: an average over samples is a weighted sum."""
    order = rng.permuted(np.tile(np.arange(num_steps), (num_tasks, 1)), axis=1)
    minibatch, task = np.arange(num_minibatches)[:, None, None], np.arange(num_tasks)[:, None]
    card = np.arange(math.ceil(num_steps / num_minibatches)) * num_minibatches + (minibatch - task * num_steps) % num_minibatches
    dealt = card < num_steps
    indices, weights = order[task, card.clip(max=num_steps - 1)], dealt / dealt.sum(-1, keepdims=True)
    return torch.from_numpy(indices), torch.from_numpy(weights.astype(np.float32))


def policy_losses(ratio, advantages, entropy, weight, args):
    """The actor's part of Eq. (1), task by task. All tensors [K, n]. Returns [K]."""
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef) * advantages)
    return -(weight * (surrogate + args.ent_coef * entropy)).sum(1)


def value_losses(values, old_values, returns, weight, args):
    """The critic's part of Eq. (1), task by task. All tensors [K, n]. Returns [K] and where the clip stops the gradient."""
    errors = (values - returns) ** 2
    clipped = (old_values + (values - old_values).clamp(-args.clip_coef, args.clip_coef) - returns) ** 2
    hit = (clipped > errors) & args.clip_vloss
    return args.vf_coef * 0.5 * (weight * torch.where(hit, clipped, errors)).sum(1), hit


def gradient_metrics(*sides):
    """What Section 3 measures, items (D1) to (D3). sides: the actor's and the critic's (name, G [K, K], w [K]), on the CPU."""
    result = {}
    for side, G, w in sides:
        norms = G.diagonal().sqrt()
        cosines, shares = G / norms.outer(norms).clamp_min(1e-60), w * norms
        spread = norms.max() / norms.masked_fill(norms == 0, math.inf).min()  # of those that the value clip leaves a gradient
        result[f"{side}_gradient_norm"], result[f"gradients/{side}_log10_norm_spread"] = norms, spread.clamp_min(1).log10()
        result[f"gradients/{side}_mean_cosine"] = (cosines.sum() - cosines.trace()) / max(len(w) * (len(w) - 1), 1)
        result[f"gradients/{side}_top1_share"] = shares.max() / shares.sum().clamp_min(1e-60)
        result[f"gradients/{side}_combined_norm"] = (w @ G @ w).clamp_min(1e-60).sqrt()
    return result | {"gradients/norm_ratio": result["gradients/critic_combined_norm"] / result["gradients/actor_combined_norm"]}


def main():
    args, names, checkpoint = parse_args()
    num_tasks, collect_steps = len(names), len(names) * args.num_steps
    run_dir = Path(args.run_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}__{SCRIPT}__MT{num_tasks}__{args.seed}")
    torch.set_num_threads(args.torch_threads or torch.get_num_threads())
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    agent = Agent(num_tasks, args.hidden_sizes).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    actor_shared, critic_shared = list(agent.actor.parameters()), list(agent.critic.parameters())
    actor_own, critic_own = [agent.log_std], [agent.head_weight, agent.head_bias]
    first_collect, global_step, evals = 0, 0, [("step", "task", "episodes", "success_rate", "mean_return")]
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"]), optimizer.load_state_dict(checkpoint["optimizer"])
        first_collect, global_step, evals = (checkpoint[key] for key in ("collect", "global_step", "evals"))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        fcntl.flock(os.open(run_dir, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
        (run_dir / "args.tmp").write_text(json.dumps({"script": SCRIPT, **asdict(args)}, indent=2) + "\n")
        os.replace(run_dir / "args.tmp", run_dir / "args.json")
    except OSError as error:
        check(False, f"--run-dir {run_dir}: {error.strerror}; expected a directory to write to, in use by no other run")
    size = f"K = {num_tasks}, {sum(p.numel() for p in agent.parameters()):,} parameters"
    print(f"{SCRIPT} on {' '.join(args.tasks) or args.benchmark}: {size}, device {device}, run directory {run_dir}", flush=True)
    if args.track:
        import wandb
        wandb.init(name=run_dir.name, config=asdict(args), dir=run_dir, sync_tensorboard=True)
    writer = SummaryWriter(run_dir, purge_step=global_step + bool(checkpoint))
    writer.add_custom_scalars({"overview": {title: ["Multiline", [tags]] for title, tags in PANELS.items()}})
    writer.add_text("args", "\n".join(["|flag|value|", "|-|-|", *(f"|{k}|{v}|" for k, v in asdict(args).items())]), global_step)

    def log(tag, value):  # a number, or K numbers under the tasks' names and their mean
        for name, x in [(tag, value)] if np.ndim(value) == 0 else zip([*names, "mean"], [*value, value.mean()]):
            writer.add_scalar(name if name == tag else f"{tag}/{name}", x, global_step)

    def stop(number, _):  # workers end by -15, SIGTERM, when this process ends
        died = [f"process of {p.name} died ({p.exitcode})" for _, p, _ in envs.workers if p.exitcode not in (None, -15)]
        if number != signal.SIGCHLD or died:
            sys.exit(f"\n{'; '.join(died) or 'stopped'}; continue with: python {sys.argv[0]} --resume {run_dir}")
    envs, task = TaskEnvs(names, args), torch.arange(num_tasks, device=device)[:, None]
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGCHLD:  # Ctrl-C, a scheduler, the end of a worker
        signal.signal(number, stop)
    num_collects, started = args.total_timesteps // collect_steps, time.time()
    for collect in range(first_collect, num_collects + 1):
        if collect > first_collect or not checkpoint:
            if global_step // args.eval_interval > (global_step - collect_steps) // args.eval_interval or collect == num_collects:
                _, _, rewards, success = envs.play(agent, np.tile(np.arange(args.eval_episodes), (num_tasks, 1)))  # each once
                rates, means = success.mean(1).round(4), rewards.sum(-1, dtype=float).mean(1).round(4)  # [K]
                evals += zip([global_step] * num_tasks, names, [args.eval_episodes] * num_tasks, rates.tolist(), means.tolist())
                log("eval_success", rates)
                for k in [k for k in (1, 3, 5, 10, 20) if k <= num_tasks]:
                    log(f"eval/success_worst_{k}", np.sort(rates)[:k].mean())
                (run_dir / "evals.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in evals))
            writer.flush()
            state = dict(script=SCRIPT, args=asdict(args), tasks=names, collect=collect, global_step=global_step, evals=evals)
            torch.save({**state, "agent": agent.state_dict(), "optimizer": optimizer.state_dict()}, buffer := BytesIO())
            with open(run_dir / "checkpoint.tmp", "wb") as file:
                file.write(buffer.getbuffer()), file.flush(), os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                os.replace(run_dir / "checkpoint.pt", run_dir / "checkpoint.previous.pt")
            os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")
            seconds = (time.time() - started) / max(collect - first_collect, 1)
            print(f"|{'#' * (20 * collect // num_collects):20}| collect {collect}/{num_collects}, {global_step:,} steps, "
                  f"{collect_steps / seconds:,.0f} steps/s, ETA {(num_collects - collect) * seconds / 3600:.2f} h, "
                  f"success {np.mean([row[3] for row in evals[-num_tasks:]]):.3f}", flush=True)
        if collect == num_collects:
            break
        rng, began = np.random.default_rng([args.seed, collect]), time.time()  # all of a collect's randomness: --resume is exact
        shape = num_tasks, args.num_steps // EPISODE_STEPS  # [K, E]
        goals, noise = np.zeros(shape, int), np.zeros((*shape, EPISODE_STEPS, ACTION_DIM), np.float32)
        for e in range(shape[1]):  # Algorithm C.1: T steps of each task, on random goals
            goals[:, e] = rng.integers(NUM_GOALS, size=num_tasks)
            noise[:, e] = rng.standard_normal((EPISODE_STEPS, num_tasks, ACTION_DIM), np.float32).swapaxes(0, 1)
        noise *= agent.log_std.exp().detach().cpu().numpy()[:, None, None]
        obs, actions, rewards, success = envs.play(agent, goals, noise)  # [K, E, 501, 39], [K, E, 500, 4], [K, E, 500], [K, E]
        spoiled = ~(np.isfinite(obs).all((2, 3)) & np.isfinite(rewards).all(2))  # [K, E]
        for k, e in np.argwhere(spoiled):  # one of the task's other episodes stands in
            obs[k, e], actions[k, e], rewards[k, e] = (x[k, spoiled[k].argmin()] for x in (obs, actions, rewards))
        skipped = spoiled.sum(1)  # [K]
        agent.success_ema.lerp_(torch.from_numpy(success.mean(1)).to(agent.success_ema), 0.1)
        update_began, totals, minibatches = time.time(), {}, 0
        obs, actions, rewards = (torch.from_numpy(x).to(device) for x in (obs, actions, rewards))
        obs = torch.cat([obs, torch.eye(num_tasks, device=device)[:, None, None].expand(*obs.shape[:3], -1)], dim=-1)
        flat_obs, flat_actions = obs[:, :, :-1].flatten(1, 2), actions.flatten(1, 2)  # [K, T, obs_dim], [K, T, 4]
        with torch.no_grad():
            policies = (Normal(agent.actor(o), s.exp()) for o, s in zip(flat_obs, agent.log_std))  # task by task to bound memory
            old_logprobs = torch.stack([p.log_prob(a).sum(-1) for p, a in zip(policies, flat_actions)])  # [K, T]
        for repeat in range(args.update_epochs):
            values = agent.values(obs)  # [K, E, 501], raw; anew in every repeat (Table B.1)
            values[..., -1] *= args.bootstrap_truncation
            advantages, returns = gae(rewards, values, args.gamma, args.gae_lambda)  # [K, E, 500]
            advantages, returns, old_values = (x.flatten(1) for x in (advantages, returns, values[..., :-1]))  # [K, T]
            if repeat == 0:
                explained_variance = 1 - (returns - old_values).var(1) / returns.var(1).clamp_min(1e-8)  # [K]
                agent.update_popart(returns)  # Algorithm C.1, line 3
            returns, old_values = agent.normalize(returns), agent.normalize(old_values)
            indices, weights = (x.to(device) for x in deal_minibatches(num_tasks, args.num_steps, args.num_minibatches, rng))
            samples = flat_obs, flat_actions, old_logprobs, advantages, returns, old_values
            for index, weight in zip(indices, weights):  # [K, n]; Algorithm C.1, line 6
                mb_obs, mb_actions, mb_old_logprobs, mb_advantages, mb_returns, mb_old_values = (x[task, index] for x in samples)
                mb_advantages -= (weight * mb_advantages).sum(1, keepdim=True)  # Section 2, Table B.1: normalised task by task
                mb_advantages /= (weight * mb_advantages**2).sum(1, keepdim=True).sqrt() + 1e-8
                mean, actor_tape = forward_with_tape(agent.actor, mb_obs)  # [K, n, 4]
                policy = Normal(mean, agent.log_std[:, None].exp())
                ratio, entropy = (policy.log_prob(mb_actions).sum(-1) - mb_old_logprobs).exp(), policy.entropy().sum(-1)  # [K, n]
                actor_losses = policy_losses(ratio, mb_advantages, entropy, weight, args)  # [K]; lines 9-12
                output, critic_tape = forward_with_tape(agent.critic, mb_obs)  # [K, n, 1]
                mb_values = agent.head_weight[:, None] * output.squeeze(-1) + agent.head_bias[:, None]  # normalised [K, n]
                critic_losses, hit = value_losses(mb_values, mb_old_values, mb_returns, weight, args)  # [K]
                actor_grads, actor_own_grads = per_task_gradients(actor_losses, actor_tape, actor_own)  # [K, D]
                critic_grads, critic_own_grads = per_task_gradients(critic_losses, critic_tape, critic_own)
                actor_gram, critic_gram = torch.stack([gram(actor_grads), gram(critic_grads)]).cpu()  # the only wait for the GPU
                spoiled = ~(actor_gram + critic_gram).diagonal().isfinite().numpy()  # [K]
                skipped += spoiled
                if spoiled.any():
                    print(f"collect {collect}, repeat {repeat}: minibatch skipped: {np.array(names)[spoiled]}", file=sys.stderr)
                    continue
                actor_weights = torch.from_numpy(pcgrad_weights(actor_gram.numpy(), rng))  # lines 13-14
                fairgrad = solve_fairgrad(critic_gram.numpy(), alpha=1.0)  # G w = 1 / w, Theorem 1; Table B.1, B.4
                critic_weights = torch.from_numpy(fairgrad.weights)
                if args.dump_gradients_every and collect % args.dump_gradients_every == 0 and minibatches == 0:
                    flat = [torch.cat([g.flatten(1) for g in grads], dim=1).cpu() for grads in (actor_grads, critic_grads)]
                    (run_dir / "gradients").mkdir(exist_ok=True)
                    np.savez_compressed(run_dir / f"gradients/collect_{collect:05}.npz", tasks=names, collect=collect,
                                        popart_mu=agent.mu.cpu(), popart_sigma=agent.sigma.cpu(),
                                        global_step=global_step, success_ema=agent.success_ema.cpu(), actor_gradients=flat[0],
                                        critic_gradients=flat[1], actor_weights=actor_weights, critic_weights=critic_weights)
                set_combined_gradient(actor_shared, actor_grads, actor_own, actor_own_grads, actor_weights.to(device))
                set_combined_gradient(critic_shared, critic_grads, critic_own, critic_own_grads, critic_weights.to(device))
                nn.utils.clip_grad_norm_(actor_shared + actor_own, args.max_grad_norm)
                nn.utils.clip_grad_norm_(critic_shared + critic_own, args.max_grad_norm)
                optimizer.step()
                minibatches += 1
                for tag, value in {
                    "losses/policy": actor_losses.mean(), "losses/value": critic_losses.mean(), "losses/entropy": entropy.mean(),
                    "losses/approx_kl": (weight * (ratio - 1 - ratio.log())).sum(1).mean(),
                    "losses/ratio_clip_fraction": (weight * ((ratio - 1).abs() > args.clip_coef)).sum(1).mean(),
                    "losses/value_clip_fraction": (weight * hit).sum(1).mean(),  # Remark 2
                    **gradient_metrics(("actor", actor_gram, actor_weights), ("critic", critic_gram, critic_weights)),
                    "fairgrad_weight": critic_weights, "fairgrad_contribution": critic_weights * (critic_gram @ critic_weights),
                    "fairgrad/kkt_residual": torch.tensor(fairgrad.residual),  # contributions: Eq. (C.1), B.4
                    "fairgrad/newton_iterations": torch.tensor(float(fairgrad.iterations)),
                    "fairgrad/used_scipy_fallback": torch.tensor(float(fairgrad.used_scipy_fallback)),
                    "fairgrad/solver_fallback": torch.tensor(float(fairgrad.solver_fallback)),
                }.items():
                    totals.setdefault(tag, torch.zeros_like(value)).add_(value.detach())  # no list: it would fragment memory
        global_step, now = global_step + collect_steps, time.time()
        if skipped.any():
            log("skipped", skipped)
            print(f"collect {collect}: not finite: { {n: int(s) for n, s in zip(names, skipped) if s} }", file=sys.stderr)
            check(skipped.max() <= MAX_SKIPPED, f"{names[skipped.argmax()]}: more than {MAX_SKIPPED} skipped in one collect")
        for tag, total in totals.items():
            log(tag, (total / minibatches).cpu().numpy())
        log("explained_variance", explained_variance.cpu().numpy())
        log("popart_mu", agent.mu.cpu().numpy())
        log("popart_sigma", agent.sigma.cpu().numpy())
        log("train_success", success.mean(1))
        log("train_return", rewards.sum(-1).mean(1).cpu().numpy())
        for name, seconds in ("rollout", update_began - began), ("update", now - update_began), ("all", now - began):
            log(f"speed/{name}_steps_per_second", collect_steps / seconds)


if __name__ == "__main__":
    try:
        main()
    except (OSError, EOFError) as error:
        time.sleep(1)  # a worker's death ends its pipe before its signal arrives, which says more
        sys.exit(f"{SCRIPT}: error: {error!r}; the last checkpoint is whole, continue from it with --resume")
