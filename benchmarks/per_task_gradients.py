"""K per-task gradients of TOPPO's critic, their fp64 Gram, FairGrad's weights and the combined
gradient: time, peak memory and accuracy of vmap(grad), which the scripts use, and of alternatives,
against one plain backward pass as the limit.

    python benchmarks/per_task_gradients.py
    python benchmarks/per_task_gradients.py --device cuda    # on the GPU
    python benchmarks/per_task_gradients.py --no-write       # prints only

Prints and writes results/bench_per_task_gradients.md. The minibatch is the paper's, 3,120 samples
on MT10 and 15,600 on MT50, with random observations and returns. All rows include the forward
pass, and all end in the scripts' own gram, solve_fairgrad and set_gradients, but for torchjd's
autogram: that gives no gradients, only their Gram, in fp32, and takes a second backward pass to
combine them. Memory is what a child process of its own, or the GPU's allocator, holds at most
beyond the networks and the minibatch.
"""

import copy
import ctypes
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import torch
from report import ROOT, header, now, parser, process_memory, take_turns, write

sys.path.insert(0, str(ROOT))
import toppo_mt50 as script  # noqa: E402

from fairgrad_solver import solve_fairgrad  # noqa: E402

PLAIN = "one backward of the mean loss (limit)"
OURS = "ours, `vmap(grad)`"
PACKAGES = ["torch", "numpy", "torchjd"]
ROW_NAMES = ["scale", "bias"]


def problem(benchmark, num_steps, device, dtype=torch.float32):
    """An agent and a minibatch {name: [K, n, ...]}: 1/32 of num_steps samples of each task."""
    torch.manual_seed(1)
    args = script.Args(benchmark=benchmark)
    num_tasks = len(args.tasks)
    agent = script.Agent(num_tasks, args.hidden_sizes)
    n = num_steps // args.num_minibatches
    one_hot = torch.eye(num_tasks)[:, None].expand(-1, n, -1)
    obs = torch.cat([torch.randn(num_tasks, n, script.OBS_DIM), one_hot], dim=-1)
    with torch.no_grad():
        values = agent.critic(obs).squeeze(-1)
    mb = {
        "obs": obs,
        "old_values": values + 0.1 * torch.randn_like(values),  # the clip stops some gradients
        "returns": values + torch.randn_like(values),
    }
    agent = agent.to(device, dtype)
    return SimpleNamespace(
        args=args,
        net=agent.critic,
        rows=dict(agent.popart.named_parameters()),
        mb={name: x.to(device, dtype) for name, x in mb.items()},
        device=device,
    )


# The rows' gradients. But for vmap they are as one would write them without torch.func.


def losses(net, p):
    """The critic's losses [K] of all tasks at once."""
    values = p.rows["scale"][:, None] * net(p.mb["obs"]).squeeze(-1) + p.rows["bias"][:, None]
    old_values = p.mb["old_values"]
    change = (values - old_values).clamp(-p.args.clip_coef, p.args.clip_coef)
    errors = (values - p.mb["returns"]) ** 2
    clipped_errors = (old_values + change - p.mb["returns"]) ** 2
    return p.args.vf_coef * 0.5 * torch.max(errors, clipped_errors).mean(1)


def plain_backward(p):
    p.net.zero_grad()
    losses(p.net, p).mean().backward()


@torch.no_grad()
def ours(p):
    return script.per_task_gradients(script.value_loss, p.net, p.rows, p.mb, p.args)[0]


def stacked(each):
    """Gradients from a list, task by task, of (critic's parameters', {name: rows' [K]})."""
    shared = [torch.cat([x.flatten() for x in parameters]) for parameters, _ in each]
    rows = {}
    for name in ROW_NAMES:
        rows[name] = torch.stack([of_task[name][k] for k, (_, of_task) in enumerate(each)])
    return script.Gradients(torch.stack(shared), rows)


def one_task(loss, p, **kwargs):
    parameters = list(p.net.parameters())
    rows = [p.rows[name] for name in ROW_NAMES]
    gradients = torch.autograd.grad(loss, [*parameters, *rows], **kwargs)
    return gradients[: len(parameters)], dict(zip(ROW_NAMES, gradients[len(parameters) :]))


def retain_graph_loop(p):
    return stacked([one_task(loss, p, retain_graph=True) for loss in losses(p.net, p)])


def slices_loop(p):
    each = []
    for k in range(len(p.mb["obs"])):
        rows = {name: x[k : k + 1] for name, x in p.rows.items()}
        mb = {name: x[k : k + 1] for name, x in p.mb.items()}
        (loss,) = losses(p.net, SimpleNamespace(args=p.args, rows=rows, mb=mb))
        each.append(one_task(loss, p))
    return stacked(each)


def combine(p, gradients):
    """What the scripts do with the gradients. Returns the Gram."""
    with torch.no_grad():
        G = script.gram(gradients.shared).cpu().numpy()
        script.set_gradients(p.net, p.rows, gradients, solve_fairgrad(G).weights)
    return G


def autogram(p):
    if not hasattr(p, "hooked"):  # its hooks would slow the other rows
        from torchjd.autogram import Engine

        p.hooked = copy.deepcopy(p.net)
        p.engine = Engine(p.hooked, batch_dim=0)  # the tasks; much faster than batch_dim=None
    p.hooked.zero_grad()
    found = losses(p.hooked, p)
    return p.engine.compute_gramian(found), found


def autogram_combine(p, gram_and_losses):
    G = gram_and_losses[0].cpu().double().numpy()
    found = gram_and_losses[1]
    found.backward(torch.from_numpy(solve_fairgrad(G).weights).to(found))
    return G


ROWS = {  # name: (gradients, what goes on from there to the Gram, which it returns, and .grad)
    PLAIN: (plain_backward, None),
    OURS: (ours, combine),
    "a backward per task, `retain_graph`": (retain_graph_loop, combine),
    "forward and backward per task's slice": (slices_loop, combine),
}
if find_spec("torchjd"):
    ROWS["torchjd's autogram"] = autogram, autogram_combine


def whole(name, p):
    """All of a row. Returns the Gram, or None of the plain one."""
    gradients, finish = ROWS[name]
    found = gradients(p)
    return finish(p, found) if finish else None


# What is measured.


def times(p, repetitions):
    """Seconds [repetitions] of each row's gradients, {name: ..}, and of all, {"name, all": ..}."""
    runs = {}
    for name, (gradients, finish) in ROWS.items():
        runs[name] = partial(gradients, p)
        if finish:
            runs[f"{name}, all"] = partial(whole, name, p)
    return take_turns(runs, repetitions, p.device)


def stages(p, repetitions):
    """Seconds of the limit and of the stages of ours, [repetitions, 5], each with a wait."""
    seconds = []
    for _ in range(repetitions):
        marks = [now(p.device)]
        plain_backward(p)
        marks.append(now(p.device))
        gradients = ours(p)
        marks.append(now(p.device))
        G = script.gram(gradients.shared).cpu().numpy()
        marks.append(now(p.device))
        weights = solve_fairgrad(G).weights
        marks.append(now(p.device))
        with torch.no_grad():
            script.set_gradients(p.net, p.rows, gradients, weights)
        seconds.append(np.diff([*marks, now(p.device)]))
    return np.array(seconds)


def gram_error(G, reference):
    norms = np.sqrt(np.diagonal(reference))
    return np.max(np.abs(G - reference) / np.outer(norms, norms))


def numpy_gram(gradients):
    J = gradients.shared.cpu().numpy().astype(np.float64)
    return J @ J.T


def peak_memory(name, benchmark, args):
    """In a child process that has computed nothing yet: MB beyond networks and minibatch."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    small = problem("MT10", 64, args.device)
    for _ in range(2):
        whole(name, small)  # loads and sets up what the first call needs
    p = problem(benchmark, args.num_steps, args.device)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        # Or the row would reuse what making the minibatch has left behind, and look smaller
        ctypes.CDLL(None).malloc_trim(0)
        before = process_memory("VmRSS")
    for _ in range(2):
        whole(name, p)
    if args.device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return process_memory("VmHWM") - before


def row(name, p, seconds, memory, reference):
    """A row of the table."""
    cells = []
    for key in (name, f"{name}, all"):
        if key in seconds:
            ratio = np.median(seconds[key] / seconds[PLAIN])
            cells += [f"{1e3 * np.median(seconds[key]):.1f}", f"{ratio:.2f}×"]
        else:
            cells += ["", ""]
    G = whole(name, p)
    error = "" if G is None else f"{gram_error(G, reference):.0e}"
    return f"| {' | '.join([name, *cells, f'{memory:.0f}', error])} |"


def benchmark_lines(benchmark, args):
    p = problem(benchmark, args.num_steps, args.device)
    exact = problem(benchmark, args.num_steps, args.device, torch.float64)
    reference = numpy_gram(slices_loop(exact))  # network, data and gradients in fp64
    num_tasks, n = p.mb["returns"].shape
    seconds = times(p, args.repetitions)
    lines = [
        f"## {benchmark}: K = {num_tasks}, {num_tasks * n:,} samples",
        "",
        "| | gradients, ms | to the limit | all, ms | to the limit | peak memory, MB "
        "| error of the Gram |",
        "|---|---|---|---|---|---|---|",
    ]
    # Another process for each row
    with ProcessPoolExecutor(1, get_context("forkserver"), max_tasks_per_child=1) as pool:
        for name in ROWS:
            memory = pool.submit(peak_memory, name, benchmark, args).result()
            lines.append(row(name, p, seconds, memory, reference))

    gradients = ours(p)
    error = gram_error(combine(p, gradients), numpy_gram(gradients))
    limit, of_stages = np.split(stages(p, 3 * args.repetitions), [1], axis=1)
    milliseconds = [f"{1e3 * t:.2f}" for t in np.median(of_stages, axis=0)]
    ratios = [f"{t:.2f}×" for t in np.median(of_stages / limit, axis=0)]
    return [
        *lines,
        "",
        f"Our Gram's error against numpy's fp64 product of the same fp32 gradients: {error:.0e}.",
        "",
        "| stage of ours | gradients | Gram | FairGrad's weights | combined gradient |",
        "|---|---|---|---|---|",
        f"| ms | {' | '.join(milliseconds)} |",
        f"| to the limit | {' | '.join(ratios)} |",
        "",
    ]


def main():
    flags = parser(__doc__, "bench_per_task_gradients.md", repetitions=7)
    text = "steps per task of the collect, whose 1/32 a minibatch is (default 10,000)"
    flags.add_argument("--num-steps", type=int, default=10_000, help=text)
    args = flags.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    lines = [
        *header("Per-task gradients", PACKAGES, device=args.device),
        "TOPPO's critic (LN-c, PopArt's heads), forward pass included everywhere. `All` adds the",
        "fp64 Gram, FairGrad's weights and the combined gradient; torchjd's autogram gives no",
        "gradients, so its first column is the Gram. The rows take turns; medians of",
        f"{args.repetitions} repetitions, ratios are medians of the repetitions' ratios. Memory is",
        "the peak beyond networks and minibatch. Errors are max \\|G − G_ref\\| / (‖g_i‖‖g_j‖), in",
        "the table against network, data and gradients in fp64.",
        "" if find_spec("torchjd") else "torchjd is not installed.\n",
    ]
    for benchmark in args.benchmark:
        lines += benchmark_lines(benchmark, args)
    write(lines, args)


if __name__ == "__main__":
    main()
