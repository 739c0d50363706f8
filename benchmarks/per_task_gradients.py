"""Time of K per-task gradients of TOPPO's critic and of what follows them, against one backward.

    python benchmarks/per_task_gradients.py --benchmark MT10

Prints a Markdown table. One plain backward pass of the mean loss is the limit; the other rows give
K gradients, and "all" adds their fp64 Gram, FairGrad's weights and the combined gradient. The
minibatch is the paper's, 3,120 samples on MT10 and 15,600 on MT50, with random observations and
returns. Every row includes the forward pass. The rows take turns.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toppo_mt50 as script  # noqa: E402

from fairgrad_solver import solve_fairgrad  # noqa: E402


@dataclass
class Args:
    benchmark: Literal["MT10", "MT50"] = "MT10"
    """Meta-World task set, for its number of tasks"""
    num_steps: int = 10_000
    """steps per task of the collect, whose 1/32 a minibatch is"""
    repetitions: int = 7
    """turns of each row, of which the median is printed"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where to compute"""


def problem(args, dtype=torch.float32):
    """TOPPO's critic, its heads {name: [K]} and a minibatch {name: [K, n, ...]}."""
    torch.manual_seed(1)
    flags = script.Args(benchmark=args.benchmark)
    num_tasks = len(flags.tasks)
    n = args.num_steps // flags.num_minibatches
    agent = script.Agent(num_tasks, flags.hidden_sizes)
    one_hot = torch.eye(num_tasks)[:, None].expand(-1, n, -1)
    obs = torch.cat([torch.randn(num_tasks, n, script.OBS_DIM), one_hot], dim=-1)
    with torch.no_grad():
        values = agent.critic(obs).squeeze(-1)
    mb = {
        "obs": obs,
        "old_values": values + 0.1 * torch.randn_like(values),  # the clip stops some gradients
        "returns": values + torch.randn_like(values),
    }
    agent = agent.to(args.device, dtype)
    return SimpleNamespace(
        flags=flags,
        net=agent.critic,
        head={"scale": agent.popart.scale, "bias": agent.popart.bias},
        mb={name: x.to(args.device, dtype) for name, x in mb.items()},
    )


# The rows. Each returns J [K, D] and the heads' gradients {name: [K]}. But for vmap's they are as
# one would write them without torch.func


def losses(p, tasks=slice(None)):
    """The critic's losses of some tasks, all at once."""
    mb = {name: x[tasks] for name, x in p.mb.items()}
    head = {name: x[tasks][:, None] for name, x in p.head.items()}
    values = head["scale"] * p.net(mb["obs"]).squeeze(-1) + head["bias"]
    clip = p.flags.clip_coef
    clipped = mb["old_values"] + (values - mb["old_values"]).clamp(-clip, clip)
    errors = torch.max((values - mb["returns"]) ** 2, (clipped - mb["returns"]) ** 2)
    return p.flags.vf_coef * 0.5 * errors.mean(1)


def one_backward(p):
    losses(p).mean().backward()


@torch.no_grad()
def vmap_of_grad(p):
    return script.per_task_gradients(script.value_loss, p.net, p.head, p.mb, p.flags)[:2]


def a_backward_per_task(p):
    return gradients_of(p, losses(p), retain_graph=True)


def a_forward_and_backward_per_task(p):
    return gradients_of(p, (losses(p, slice(k, k + 1))[0] for k in range(len(p.mb["obs"]))))


def gradients_of(p, of_tasks, **options):
    J = []
    heads = []
    for k, loss in enumerate(of_tasks):
        shared = list(p.net.parameters())
        found = torch.autograd.grad(loss, [*shared, *p.head.values()], **options)
        J.append(torch.cat([g.flatten() for g in found[: len(shared)]]))
        heads.append([g[k] for g in found[len(shared) :]])
    return torch.stack(J), dict(zip(p.head, torch.tensor(heads).T.to(J[0])))


@torch.no_grad()
def combine(p, J, head_gradients):
    """What the script does with the gradients."""
    weights = solve_fairgrad(script.gram(J).cpu().numpy()).weights
    script.set_gradients(p.net, p.head, J, head_gradients, weights)


LIMIT = "one backward of the mean loss"
WAYS = {
    "ours, `vmap(grad)`": vmap_of_grad,
    "a backward per task": a_backward_per_task,
    "a forward and a backward per task": a_forward_and_backward_per_task,
}


def seconds(run, device):
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main():
    args = tyro.cli(Args, description=__doc__)
    p = problem(args)
    rows = {LIMIT: lambda: one_backward(p)}
    for name, way in WAYS.items():
        rows[name] = lambda way=way: way(p)
        rows[f"{name}, all"] = lambda way=way: combine(p, *way(p))

    times = {name: [] for name in rows}
    for run in rows.values():
        seconds(run, args.device)  # warm up
    for _ in range(args.repetitions):
        for name, run in rows.items():
            times[name].append(seconds(run, args.device))

    num_tasks, n = p.mb["returns"].shape
    print(f"| K = {num_tasks}, {num_tasks * n:,} samples | ms | to one backward |\n|---|---|---|")
    for name, of_row in times.items():
        ratio = np.median(np.divide(of_row, times[LIMIT]))
        print(f"| {name} | {1e3 * np.median(of_row):.1f} | {ratio:.2f}× |")


if __name__ == "__main__":
    main()
