"""K per-task gradients of TOPPO's critic, their fp64 Gram, FairGrad's weights and the combined gradient: time, peak memory and
accuracy of ours and of the alternatives, against one plain backward pass as the limit.

    python benchmarks/per_task_gradients.py                    prints and writes results/bench_per_task_gradients.md
    python benchmarks/per_task_gradients.py --device cuda      the same on the GPU
    python benchmarks/per_task_gradients.py --no-write         prints only

The minibatch is the paper's, 3,125 samples on MT10 and 15,625 on MT50, dealt as in training, with random observations and
returns. All rows include the forward pass, and all end in the scripts' own gram, solve_fairgrad and set_combined_gradient, but
for torchjd's autogram: that gives no gradients, only their Gram, in fp32, and takes a second backward pass to combine them.
Memory is what a child process of its own, or the GPU's allocator, holds at most beyond the networks and the minibatch.
The scripts have glibc keep freed buffers (mallopt), which speeds up the limit as well; the last table is with and without that.
"""

import argparse
import copy
import ctypes
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the scripts do before they load torch
if "WITHOUT_MALLOPT" in os.environ:  # a child process where toppo_mt50 finds no mallopt; what it imports still finds all of libc
    import metaworld  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    with mock.patch.object(ctypes, "CDLL", lambda name: None):
        import toppo_mt50
else:
    import toppo_mt50
import numpy as np  # noqa: E402
import torch  # noqa: E402
from report import header, write  # noqa: E402
from torch.func import functional_call, grad, vmap  # noqa: E402

from fairgrad_solver import solve_fairgrad  # noqa: E402

REPORT = ROOT / "results" / "bench_per_task_gradients.md"
PLAIN, OURS = "one backward of the mean loss (limit)", "ours"
PACKAGES = "torch", "numpy", "torchjd"


def problem(num_tasks, num_steps, device, dtype=torch.float32):
    """An agent and a minibatch [K, n, ...] of it: 1/32 of num_steps samples of each task."""
    torch.manual_seed(1)
    p = SimpleNamespace(agent=toppo_mt50.Agent(num_tasks, toppo_mt50.Args.hidden_sizes), args=toppo_mt50.Args())
    _, weights = toppo_mt50.deal_minibatches(num_tasks, num_steps, 32, np.random.default_rng(1))
    p.weight = weights[0].to(device, dtype)
    one_hot = torch.eye(num_tasks)[:, None].expand(-1, p.weight.shape[1], -1)
    p.obs = torch.cat([torch.randn(*p.weight.shape, toppo_mt50.OBS_DIM), one_hot], dim=-1)  # [K, n, 39 + K]
    with torch.no_grad():
        values = p.agent.critic(p.obs).squeeze(-1)
    p.old_values = (values + 0.1 * torch.randn_like(values)).to(device, dtype)  # the value clip stops some of the gradients
    p.returns = (values + torch.randn_like(values)).to(device, dtype)
    p.agent, p.obs = p.agent.to(device, dtype), p.obs.to(device, dtype)
    p.shared, p.own = list(p.agent.critic.parameters()), [p.agent.head_weight, p.agent.head_bias]
    return p


def losses(agent, output, p, k=slice(None)):
    """The critic losses [K] of outputs [K, n, 1], or of task k's, [1] and [1, n, 1]."""
    values = agent.head_weight[k, None] * output.squeeze(-1) + agent.head_bias[k, None]
    return toppo_mt50.value_losses(values, p.old_values[k], p.returns[k], p.weight[k], p.args)[0]


# The rows: a function that gives the gradients and one that goes on from there, to the Gram, which it returns, and .grad.


def plain_backward(p):
    p.agent.zero_grad()
    losses(p.agent, p.agent.critic(p.obs), p).mean().backward()


def ours(p):
    output, tape = toppo_mt50.forward_with_tape(p.agent.critic, p.obs)
    return toppo_mt50.per_task_gradients(losses(p.agent, output, p), tape, p.own)


def stack_rows(rows, p):
    """From K lists of gradients of shared and own parameters, as per_task_gradients returns them. Row k is task k's own."""
    grads = [torch.stack(g) for g in zip(*rows)]
    return grads[: len(p.shared)], [g.diagonal() for g in grads[len(p.shared) :]]


def retain_graph_loop(p):
    critic_losses = losses(p.agent, p.agent.critic(p.obs), p)
    return stack_rows([torch.autograd.grad(loss, p.shared + p.own, retain_graph=True) for loss in critic_losses], p)


def slices_loop(p):
    slices = [slice(k, k + 1) for k in range(len(p.obs))]
    each = (losses(p.agent, p.agent.critic(p.obs[k]), p, k).sum() for k in slices)
    return stack_rows([torch.autograd.grad(loss, p.shared + p.own) for loss in each], p)


def vmap_of_grad(p):
    def loss(parameters, head_weight, head_bias, obs, old_values, returns, weight):
        values = head_weight * functional_call(p.agent.critic, parameters, obs).squeeze(-1) + head_bias
        return toppo_mt50.value_losses(values[None], old_values[None], returns[None], weight[None], p.args)[0].sum()

    gradients = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(None, 0, 0, 0, 0, 0, 0))
    parameters = {name: x.detach() for name, x in p.agent.critic.named_parameters()}
    head_weight, head_bias = (x.detach() for x in p.own)
    shared, *own = gradients(parameters, head_weight, head_bias, p.obs, p.old_values, p.returns, p.weight)
    return list(shared.values()), own


def combine(p, gradients):
    G = toppo_mt50.gram(gradients[0]).cpu()
    weights = torch.from_numpy(solve_fairgrad(G.numpy(), alpha=1.0).weights)
    toppo_mt50.set_combined_gradient(p.shared, gradients[0], p.own, gradients[1], weights.to(p.obs.device))
    return G


def autogram(p):
    if not hasattr(p, "hooked"):  # its hooks would slow the other rows
        from torchjd.autogram import Engine
        p.hooked = copy.deepcopy(p.agent)
        p.engine = Engine(p.hooked.critic, batch_dim=0)  # the batch is the tasks: much faster than batch_dim=None
    p.hooked.zero_grad()
    critic_losses = losses(p.hooked, p.hooked.critic(p.obs), p)
    return p.engine.compute_gramian(critic_losses), critic_losses


def autogram_combine(p, gram_and_losses):
    G, critic_losses = gram_and_losses[0].cpu().double(), gram_and_losses[1]
    critic_losses.backward(torch.from_numpy(solve_fairgrad(G.numpy(), alpha=1.0).weights).to(critic_losses))
    return G


ROWS = {
    PLAIN: (plain_backward, None),
    OURS: (ours, combine),
    "a backward per task, `retain_graph`": (retain_graph_loop, combine),
    "forward and backward per task's slice": (slices_loop, combine),
    "`torch.func.vmap(grad)`": (vmap_of_grad, combine),
}
if find_spec("torchjd"):
    ROWS["torchjd's autogram"] = autogram, autogram_combine


def now(p):
    if p.obs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(p, names, repetitions):
    """Seconds of each row's gradients, and of everything, {name: [repetitions, 2]}. The rows take turns."""
    runs = []  # name, what to call, how often in a repetition
    for name in names:
        gradients, finish = ROWS[name]
        for run in (lambda g=gradients: g(p), lambda g=gradients, f=finish: f(p, g(p)) if f else g(p)):
            run()
            began = now(p)
            run()
            runs.append((name, run, max(1, int(0.2 / (now(p) - began)))))  # short ones several times in a row
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repetitions):
        for name, run, calls in runs:
            began = now(p)
            for _ in range(calls):
                run()
            seconds[name].append((now(p) - began) / calls)
    return {name: np.reshape(s, (repetitions, 2)) for name, s in seconds.items()}


def stages(p, repetitions):
    """Seconds of the limit and of the stages of ours, [repetitions, 6], with a wait for the GPU after each."""
    seconds = []
    for _ in range(repetitions):
        marks = [now(p)]
        plain_backward(p)
        marks.append(now(p))
        output, tape = toppo_mt50.forward_with_tape(p.agent.critic, p.obs)
        critic_losses = losses(p.agent, output, p)
        marks.append(now(p))
        grads, own_grads = toppo_mt50.per_task_gradients(critic_losses, tape, p.own)
        marks.append(now(p))
        G = toppo_mt50.gram(grads).cpu()
        marks.append(now(p))
        weights = torch.from_numpy(solve_fairgrad(G.numpy(), alpha=1.0).weights)
        marks.append(now(p))
        toppo_mt50.set_combined_gradient(p.shared, grads, p.own, own_grads, weights.to(p.obs.device))
        seconds.append(np.diff([*marks, now(p)]))
    return np.array(seconds)


def gram_error(G, reference):
    norms = np.sqrt(np.diagonal(reference))
    return np.max(np.abs(np.asarray(G) - reference) / np.outer(norms, norms))


def numpy_gram(grads):
    rows = torch.cat([g.flatten(1) for g in grads], dim=1).cpu().numpy().astype(np.float64)
    return rows @ rows.T


def process_memory(field):
    """VmRSS or VmHWM, the resident memory of this process now or at its peak, in MB."""
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(field)) / 1024


def peak_memory(name, num_tasks, args):
    """In a child process that has computed nothing yet: MB that a row takes beyond the networks and the minibatch."""
    gradients, finish = ROWS[name]
    torch.set_num_threads(args.threads or torch.get_num_threads())

    def run(p):
        for _ in range(2):
            result = gradients(p)
            result = finish(p, result) if finish else result

    run(problem(2, 64, args.device))  # loads and sets up what the first call needs
    p = problem(num_tasks, args.num_steps, args.device)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(p)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # or the row would reuse what making the minibatch has left behind, and look smaller
    before = process_memory("VmRSS")
    run(p)
    return process_memory("VmHWM") - before


def child_times(benchmark, args, env):
    """What this script's --child-times prints: the seconds of PLAIN and OURS."""
    command = [sys.executable, __file__, "--child-times", "--benchmark", benchmark, "--threads", str(args.threads),
               "--num-steps", str(args.num_steps), "--repetitions", str(args.repetitions), "--device", "cpu"]  # fmt: skip
    return json.loads(subprocess.check_output(command, env=os.environ | env, text=True))


def benchmark_lines(benchmark, args):
    num_tasks = len(toppo_mt50.BENCHMARKS[benchmark])
    p, reference = (problem(num_tasks, args.num_steps, args.device, dtype) for dtype in (torch.float32, torch.float64))
    reference = numpy_gram(slices_loop(reference)[0])  # network, data and gradients in fp64
    seconds = measure(p, ROWS, args.repetitions)
    seconds[PLAIN][:] = seconds[PLAIN].mean(1, keepdims=True)  # it has no second part and ran twice
    with ProcessPoolExecutor(1, get_context("forkserver"), max_tasks_per_child=1) as pool:  # another process for each row
        memory = {name: pool.submit(peak_memory, name, num_tasks, args).result() for name in ROWS}
    lines = [
        f"## {benchmark}: K = {num_tasks}, {(p.weight > 0).sum():,} samples",
        "",
        "| | gradients, ms | to the limit | all, ms | to the limit | peak memory, MB | error of the Gram |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (gradients, finish) in ROWS.items():
        times, ratios = (np.median(x, axis=0) for x in (seconds[name], seconds[name] / seconds[PLAIN]))
        cells = [f"{1e3 * times[0]:.1f} | {ratios[0]:.2f}×", f"{1e3 * times[1]:.1f} | {ratios[1]:.2f}×" if finish else " | "]
        error = f"{gram_error(finish(p, gradients(p)), reference):.0e}" if finish else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {memory[name]:.0f} | {error} |")
    grads, own_grads = ours(p)
    error = gram_error(combine(p, (grads, own_grads)), numpy_gram(grads))
    lines += [
        "",
        f"Our Gram's error against numpy's fp64 product of the same fp32 gradients: {error:.0e}.",
        "",
        "| stage of ours | forward, losses | gradients | Gram | FairGrad's weights | combined gradient |",
        "|---|---|---|---|---|---|",
    ]
    limit, stage_seconds = np.split(stages(p, 3 * args.repetitions), [1], axis=1)
    lines.append("| ms | " + " | ".join(f"{1e3 * t:.2f}" for t in np.median(stage_seconds, axis=0)) + " |")
    lines.append("| to the limit | " + " | ".join(f"{t:.2f}×" for t in np.median(stage_seconds / limit, axis=0)) + " |")
    if args.device == "cpu":
        lines += ["", "| | with mallopt, ms | without, ms | without / with |", "|---|---|---|---|"]
        with_and_without: tuple[list[dict], list[dict]] = [], []  # of each round {name: [repetitions, 2]}
        for _ in range(min(args.repetitions, 3)):
            for times, env in zip(with_and_without, ({}, {"WITHOUT_MALLOPT": "1"})):
                times.append(child_times(benchmark, args, env))
        for name in PLAIN, OURS:
            kept, freed = (np.median([np.array(t[name])[:, 1] for t in times], axis=1) for times in with_and_without)
            both = f"{1e3 * np.median(kept):.1f} | {1e3 * np.median(freed):.1f}"
            lines.append(f"| {name} | {both} | {np.median(freed / kept):.2f}× |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", nargs="+", choices=["MT10", "MT50"], default=["MT10", "MT50"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--num-steps", type=int, default=10_000, help="steps per task of the collect, whose 1/32 a minibatch is")
    parser.add_argument("--out", type=Path, default=REPORT, help="the Markdown file to write")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--child-times", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.child_times:
        p = problem(len(toppo_mt50.BENCHMARKS[args.benchmark[0]]), args.num_steps, args.device)
        times = measure(p, [PLAIN, OURS], args.repetitions)
        return print(json.dumps({name: t.tolist() for name, t in times.items()}))
    lines = [
        *header("Per-task gradients", PACKAGES, device=args.device),
        "TOPPO's critic (LN-c, PopArt's heads), forward pass included everywhere. `All` adds the fp64 Gram, FairGrad's weights",
        "and the combined gradient; torchjd's autogram gives no gradients, so its first column is the Gram. The rows take turns;",
        f"medians of {args.repetitions} repetitions, ratios are medians of the repetitions' ratios. Memory is the peak beyond",
        "networks and minibatch. Errors are max \\|G − G_ref\\| / (‖g_i‖‖g_j‖), in the table against network, data and gradients",
        "in fp64. `mallopt`: the scripts' call by which glibc keeps freed buffers.",
        "" if find_spec("torchjd") else "torchjd is not installed.\n",
    ]
    for benchmark in args.benchmark:
        lines += benchmark_lines(benchmark, args)
    write(lines, args)


if __name__ == "__main__":
    main()
