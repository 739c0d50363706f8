"""Environment steps per second of a rollout: ours, EnvPool's and Meta-World's own environments.

    python benchmarks/rollout.py --benchmark MT10

Prints a Markdown table. The rows are started and warmed up first, and then take turns. All have the
400-400-400 actor and exploration noise and play whole episodes, resets included; make_vec has the
actor in the main process, one forward pass for all tasks a step. EnvPool plays a whole collect, as
its script makes new pools for each.
"""

import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]
import vanilla_mtppo  # noqa: E402


@dataclass
class Args:
    benchmark: Literal["MT10", "MT50"] = "MT10"
    """Meta-World task set"""
    steps: int = 500
    """steps of each task and repetition, whole episodes of 500"""
    envpool_steps: int = 10_000
    """the same for EnvPool: a collect"""
    goals: int = 50
    """goals of a task in make_vec; fewer start faster"""
    repetitions: int = 5
    """turns of each row, of which the median is printed"""


# Each of these starts its environments and returns a function that plays steps in each of K tasks


def script_rollout(script, args):
    flags = script.Args(benchmark=args.benchmark)
    agent = script.Agent(len(flags.tasks), flags.hidden_sizes)
    workers = script.start_workers(flags)
    rng = np.random.default_rng(1)

    def play(steps):
        flags.num_steps = steps
        script.collect_rollout(workers, agent, rng, flags)

    play(500)  # the workers start
    return play


def vector_rollout(strategy, args):
    """Meta-World's vector environments, which reset by themselves after an episode."""
    options = {"use_one_hot": True, "seed": 1, "num_goals": args.goals}
    envs = gymnasium.make_vec(f"Meta-World/{args.benchmark}", vector_strategy=strategy, **options)
    agent = vanilla_mtppo.Agent(envs.num_envs, vanilla_mtppo.Args.hidden_sizes)
    obs, _ = envs.reset()

    @torch.no_grad()
    def play(steps):
        nonlocal obs
        rollout = []
        for _ in range(steps):
            mean = agent.actor(torch.from_numpy(obs).float())  # [K, 4]
            actions = (mean + agent.log_std.exp() * torch.randn_like(mean)).numpy()
            next_obs, rewards, *_ = envs.step(actions.clip(-1, 1))
            rollout.append((obs, actions, rewards))
            obs = next_obs

    play(10)
    return play


def main():
    args = tyro.cli(Args, description=__doc__)
    rows = {
        "`make_vec`, sync": (vector_rollout("sync", args), args.steps),
        "`make_vec`, async": (vector_rollout("async", args), args.steps),
        "ours": (script_rollout(vanilla_mtppo, args), args.steps),
    }
    if find_spec("envpool"):
        import vanilla_envpool

        rows["ours on EnvPool"] = script_rollout(vanilla_envpool, args), args.envpool_steps

    num_tasks = len(vanilla_mtppo.BENCHMARKS[args.benchmark])
    rates = {name: [] for name in rows}
    for _ in range(args.repetitions):
        for name, (play, steps) in rows.items():
            began = time.perf_counter()
            play(steps)
            rates[name].append(num_tasks * steps / (time.perf_counter() - began))

    print(f"| {args.benchmark} | steps/s |\n|---|---|")
    for name, of_row in rates.items():
        print(f"| {name} | {np.median(of_row):,.0f} |")


if __name__ == "__main__":
    main()
