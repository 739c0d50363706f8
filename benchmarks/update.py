"""Where the time of one collect's update goes, what its minibatch step costs beside vanilla's and
plain PPO's, and peak memory.

    python benchmarks/update.py
    python benchmarks/update.py --device cuda    # on the GPU
    python benchmarks/update.py --no-write       # prints only

Prints and writes results/bench_update.md. Times are on random data of a collect's full size, 10,000
steps of each task, in the scripts' own update: its functions are timed as it calls them, with a
wait for the GPU after each. Plain PPO is vanilla's step with one backward pass of the mean losses
through both networks and none of the per-task gradients and their diagnostics. Memory is that of a
whole run in a child process: the script's own main, with its default flags but for
--memory-passes over one collect, and evaluations on all 50 goals before and after, with workers
that send random episodes in place of simulated ones.
"""

import importlib
import itertools
import json
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from contextlib import ExitStack, suppress
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from report import ROOT, header, now, parser, process_memory, take_turns, write
from torch.func import vmap
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

sys.path.insert(0, str(ROOT))
import toppo_mt50  # noqa: E402
import vanilla_mtppo  # noqa: E402

PACKAGES = ["torch", "numpy"]
PIECES = [
    "log-probabilities",
    "values",
    "GAE",
    "PopArt's statistics",
    "normalising",
    "dealing the minibatches",
    "minibatch steps",
]
STAGES = [
    "actor's per-task gradients",
    "critic's per-task gradients",
    "fp64 Grams",
    "FairGrad's weights",
    "PCGrad's weights",
    "combined gradients",
    "gradient clips",
    "Adam",
    "diagnostics",
]
ONCE = ["log-probabilities", "PopArt's statistics"]  # in a collect; other pieces in every pass


def random_episodes(rng, args, task_ids, *shape):
    """Episodes [len(task_ids), *shape, ...] of random numbers."""
    shape = len(task_ids), *shape
    steps = toppo_mt50.EPISODE_STEPS
    size = toppo_mt50.OBS_DIM + len(args.tasks)
    obs = rng.standard_normal((*shape, steps + 1, size), np.float32)
    one_hot = np.eye(len(args.tasks), dtype=np.float32)[task_ids]
    obs[..., toppo_mt50.OBS_DIM :] = np.expand_dims(one_hot, (*range(1, obs.ndim - 1),))
    actions = rng.standard_normal((*shape, steps, toppo_mt50.ACTION_DIM), np.float32)
    rewards = rng.random((*shape, steps), np.float32)
    return toppo_mt50.Episodes(obs, actions, rewards, np.zeros(shape, bool))


def collect(script, benchmark, args, passes):
    """An agent, its optimizer and a collect of random data, ready for the script's update."""
    torch.manual_seed(1)
    flags = script.Args(benchmark=benchmark, num_steps=args.num_steps, update_epochs=passes)
    agent = script.Agent(len(flags.tasks), flags.hidden_sizes).to(args.device)
    rng = np.random.default_rng(1)
    num_episodes = args.num_steps // script.EPISODE_STEPS
    return SimpleNamespace(
        script=script,
        agent=agent,
        optimizer=torch.optim.Adam(agent.parameters(), flags.learning_rate, eps=flags.adam_eps),
        rollout=random_episodes(rng, flags, range(len(flags.tasks)), num_episodes),
        rng=rng,
        args=flags,
    )


def run_update(s):
    return s.script.update(s.agent, s.optimizer, s.rollout, s.rng, s.args)


# Part 1: the pieces of the update.


GRADIENTS = dict(zip((toppo_mt50.policy_loss, toppo_mt50.value_loss), STAGES))


class Clock:
    """Times functions where they are called from, each by its label."""

    def __init__(self, device):
        self.device = device
        self.seconds = {}  # {label: [seconds of each call]}
        self.stack = ExitStack()

    def time(self, owner, name, label):
        """From now on owner.name is timed. label: its label, or a function of the arguments."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            began = now(self.device)
            result = function(*args, **kwargs)
            key = label if isinstance(label, str) else label(*args)
            self.seconds.setdefault(key, []).append(now(self.device) - began)
            return result

        self.stack.enter_context(mock.patch.object(owner, name, timed))

    def total(self, labels):
        return sum(sum(self.seconds[label]) for label in labels)


def time_update(s, device):
    """Runs TOPPO's update with all its functions timed. Returns the Clock."""
    clock = Clock(device)
    script = s.script
    with clock.stack:
        clock.time(s.agent, "log_probs", "log-probabilities")
        clock.time(s.agent, "values", "values")
        clock.time(s.agent.popart, "update", "PopArt's statistics")
        clock.time(s.agent.popart, "normalize", "normalising")
        clock.time(script, "gae", "GAE")
        clock.time(script, "stratified_minibatches", "dealing the minibatches")
        clock.time(script, "update_minibatch", "minibatch steps")
        clock.time(script, "per_task_gradients", lambda loss, *_: GRADIENTS[loss])
        clock.time(script, "gram", "fp64 Grams")
        clock.time(script, "solve_fairgrad", "FairGrad's weights")
        clock.time(script, "pcgrad_weights", "PCGrad's weights")
        clock.time(script, "set_gradients", "combined gradients")
        clock.time(script, "clip_grad_norm_", "gradient clips")
        clock.time(s.optimizer, "step", "Adam")
        clock.time(script, "gradient_metrics", "diagnostics")
        clock.time(script, "fairgrad_metrics", "diagnostics")
        clock.time(script, "update", "update")
        run_update(s)
    return clock


def update_lines(benchmark, args):
    """Two tables: the update's pieces, in a collect of 16 passes, and the minibatch step's."""
    clock = time_update(collect(toppo_mt50, benchmark, args, args.passes), args.device)
    repeats = toppo_mt50.Args.update_epochs / args.passes
    lines = [
        "| piece of TOPPO's update | ms | times per collect | s per collect |",
        "|---|---|---|---|",
    ]
    total = 0.0
    for label in PIECES:
        seconds = clock.seconds[label]
        times = round(len(seconds) * (1 if label in ONCE else repeats))
        each = np.median(seconds)  # the first call may load and set up much
        total += each * times
        lines.append(f"| {label} | {1e3 * each:.1f} | {times} | {each * times:.2f} |")
    rest = repeats * (clock.total(["update"]) - clock.total(PIECES))
    lines.append(f"| the rest, above all gathering the minibatches | | | {rest:.2f} |")
    lines += [f"| all | | | {total + rest:.1f} |", ""]

    steps = len(clock.seconds["minibatch steps"])
    lines += ["| stage of TOPPO's minibatch step | ms |", "|---|---|"]
    for label in STAGES:
        lines.append(f"| {label} | {1e3 * clock.total([label]) / steps:.2f} |")
    rest = clock.total(["minibatch steps"]) - clock.total(STAGES)
    lines.append(f"| the rest | {1e3 * rest / steps:.2f} |")
    return [*lines, f"| all | {1e3 * clock.total(['minibatch steps']) / steps:.2f} |", ""]


# Part 2: minibatch steps side by side.


def plain_step(agent, optimizer, mb, rng, args):
    """Vanilla's losses, but one backward pass of their means through both networks."""
    sides = [
        (vanilla_mtppo.policy_loss, agent.actor, {"log_std": agent.log_std}),
        (vanilla_mtppo.value_loss, agent.critic, {}),
    ]
    means = []
    metrics: dict[str, torch.Tensor] = {}
    for loss, net, rows in sides:
        all_tasks = vmap(partial(loss, net=net, args=args), in_dims=(None, 0, 0))
        losses, of_loss = all_tasks(parameters_to_vector(net.parameters()), rows, mb)
        means.append(losses.mean())
        metrics |= {tag: x.detach().mean() for tag, x in of_loss.items()}
    optimizer.zero_grad()
    sum(means).backward()
    for _, net, rows in sides:
        clip_grad_norm_([*net.parameters(), *rows.values()], args.max_grad_norm)
    optimizer.step()
    return metrics


def some_minibatches(s, count=4):
    """The first ones of the script's own update."""
    found = []

    def keep(agent, optimizer, mb, rng, args):
        found.append(mb)
        if len(found) == count:
            raise StopIteration
        return {}

    with mock.patch.object(s.script, "update_minibatch", keep), suppress(StopIteration):
        run_update(s)
    return found


def step_lines(benchmark, args):
    steps = {
        "TOPPO": (toppo_mt50, toppo_mt50.update_minibatch),
        "vanilla": (vanilla_mtppo, vanilla_mtppo.update_minibatch),
        "plain PPO": (vanilla_mtppo, plain_step),
    }
    runs = {}
    for name, (script, step) in steps.items():
        s = collect(script, benchmark, args, passes=1)
        minibatches = itertools.cycle(some_minibatches(s))
        s.rollout = None  # or three would lie about

        def run(s=s, step=step, minibatches=minibatches):
            step(s.agent, s.optimizer, next(minibatches), s.rng, s.args)

        runs[name] = run
    seconds = take_turns(runs, args.repetitions, args.device)
    lines = ["| minibatch step of | ms | to vanilla | to plain PPO |", "|---|---|---|---|"]
    for name, t in seconds.items():
        others = [np.median(t / seconds[other]) for other in ("vanilla", "plain PPO")]
        ratios = " | ".join(f"{ratio:.2f}×" for ratio in others)
        lines.append(f"| {name} | {1e3 * np.median(t):.1f} | {ratios} |")
    return [*lines, ""]


# Part 3: peak memory.


def synthetic_worker(pipe, args, task_ids):
    """In place of the scripts' environment_worker: sends random episodes of the same shapes."""
    rng = np.random.default_rng(args.seed)
    with suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            pipe.recv()
            pipe.send(random_episodes(rng, args, task_ids))


def run_and_print_memory(script, benchmark, args):
    """In a child process: one collect by the script's main.

    The last line that it prints is its peak memory, host and GPU, in MB.
    """
    script.environment_worker = synthetic_worker
    with tempfile.TemporaryDirectory() as run_dir:
        flags = script.Args(
            benchmark=benchmark,
            num_steps=args.num_steps,
            total_timesteps=1,  # that is one collect
            update_epochs=args.memory_passes,
            torch_threads=args.threads,
            cuda=args.device == "cuda",
            run_dir=run_dir,
        )
        script.main(flags, None)
    gpu = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else None
    print(json.dumps([process_memory("VmHWM"), gpu]))


def memory_lines(benchmark, args):
    lines = ["| peak memory of the main process | MB | on the GPU, MB |", "|---|---|---|"]
    for script in (vanilla_mtppo, toppo_mt50):
        flags = {
            "--child-memory": script.SCRIPT,
            "--benchmark": benchmark,
            "--device": args.device,
            "--threads": args.threads,
            "--num-steps": args.num_steps,
            "--memory-passes": args.memory_passes,
        }
        words = [str(word) for flag in flags.items() for word in flag]
        output = subprocess.check_output([sys.executable, __file__, *words], text=True)
        host, gpu = json.loads(output.splitlines()[-1])
        lines.append(f"| {script.SCRIPT}.py | {host:,.0f} | {f'{gpu:,.0f}' if gpu else ''} |")
    return [*lines, ""]


def main():
    flags = parser(__doc__, "bench_update.md", repetitions=9)

    def number(name, default, text):
        flags.add_argument(name, type=int, default=default, help=f"{text} (default {default:,})")

    number("--num-steps", 10_000, "of each task in a collect")
    number("--passes", 2, "over the collect where the update's pieces are timed; training has 16")
    number("--memory-passes", 4, "over the collect where memory is measured")
    scripts = ["vanilla_mtppo", "toppo_mt50"]
    flags.add_argument("--child-memory", choices=scripts, help=SUPPRESS)
    args = flags.parse_args()
    if args.child_memory:
        script = importlib.import_module(args.child_memory)
        return run_and_print_memory(script, args.benchmark[0], args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    lines = [
        *header("Update", PACKAGES, device=args.device),
        "Random data of a collect's size. The pieces are medians, the stages means, of",
        f"{args.passes} passes of TOPPO's own update; a collect has 16. Minibatch steps take",
        f"turns; medians of {args.repetitions} repetitions, ratios are medians of the repetitions'",
        "ratios. Plain PPO is vanilla with one backward pass of the mean losses and no per-task",
        "gradients.",
        "Memory is the peak of a child process that runs the script's own main, with random",
        f"episodes in place of simulated ones: one collect, {args.memory_passes} passes of 32",
        "minibatches, evaluations on 50 goals before and after.",
        "",
    ]
    for benchmark in args.benchmark:
        num_tasks = len(toppo_mt50.BENCHMARKS[benchmark])
        lines += [f"## {benchmark}: {num_tasks * args.num_steps:,} steps", ""]
        lines += update_lines(benchmark, args)
        lines += step_lines(benchmark, args)
        lines += memory_lines(benchmark, args)
    write(lines, args)


if __name__ == "__main__":
    main()
