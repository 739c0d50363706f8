"""The pieces of one collect's update, the minibatch step of TOPPO, vanilla and plain PPO side by side, and peak memory.

    python benchmarks/update.py                    MT10 and MT50; prints and writes results/bench_update.md
    python benchmarks/update.py --device cuda      the same on the GPU
    python benchmarks/update.py --no-write         prints only

Times are on random data of a collect's full size, 10,000 steps of each task, through the scripts' own functions; minibatch_step
is what their main() does with a minibatch. Plain PPO is vanilla with one backward pass of the mean losses for both networks and
none of the per-task gradients and their diagnostics. The stages of TOPPO's step are timed with a wait for the GPU after each.
Memory is that of a whole run in a child process: the script's own main(), with its default flags but for --memory-passes over one
collect, and evaluations on all 50 goals before and after, with workers that send random episodes in place of simulated ones.
"""

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import toppo_mt50  # noqa: E402  before torch, as it sets GOMP_SPINCOUNT
import vanilla_mtppo  # noqa: E402, I001
import numpy as np  # noqa: E402
import torch  # noqa: E402
from report import header, write  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributions import Normal  # noqa: E402

from fairgrad_solver import solve_fairgrad  # noqa: E402

REPORT = ROOT / "results" / "bench_update.md"
EPISODE_STEPS, OBS_DIM, ACTION_DIM = toppo_mt50.EPISODE_STEPS, toppo_mt50.OBS_DIM, toppo_mt50.ACTION_DIM
PACKAGES = "torch", "numpy"


def collect(script, num_tasks, num_steps, device):
    """An agent, its optimiser and a collect of random data, ready for the update."""
    torch.manual_seed(1)
    s = SimpleNamespace(script=script, args=script.Args(num_steps=num_steps), rng=np.random.default_rng(1))
    s.agent = script.Agent(num_tasks, s.args.hidden_sizes).to(device)
    s.optimizer = torch.optim.Adam(s.agent.parameters(), lr=s.args.learning_rate, eps=1e-5)
    s.actor_shared, s.critic_shared = list(s.agent.actor.parameters()), list(s.agent.critic.parameters())
    s.actor_own, s.critic_own = [s.agent.log_std], []
    if script is toppo_mt50:
        s.critic_own = [s.agent.head_weight, s.agent.head_bias]
    shape = num_tasks, num_steps // EPISODE_STEPS
    one_hot = torch.eye(num_tasks)[:, None, None].expand(*shape, EPISODE_STEPS + 1, -1)
    s.obs = torch.cat([torch.randn(*shape, EPISODE_STEPS + 1, OBS_DIM), one_hot], dim=-1).to(device)
    s.actions = torch.randn(*shape, EPISODE_STEPS, ACTION_DIM, device=device)
    s.rewards = torch.rand(*shape, EPISODE_STEPS, device=device)
    s.flat_obs, s.flat_actions = s.obs[:, :, :-1].flatten(1, 2), s.actions.flatten(1, 2)
    s.task, s.totals = torch.arange(num_tasks, device=device)[:, None], {}
    return s


# Once per collect or per pass over it.


@torch.no_grad()
def old_logprobs(s):
    policies = (Normal(s.agent.actor(o), std.exp()) for o, std in zip(s.flat_obs, s.agent.log_std))
    return torch.stack([p.log_prob(a).sum(-1) for p, a in zip(policies, s.flat_actions)])


def gae_over_all_steps(rewards, values, gamma, gae_lambda):
    """The alternative to the scripts' gae: T steps of K numbers, with the ends of episodes among them, not 500 of K E numbers."""
    advantages, advantage = torch.zeros_like(rewards.flatten(1)), 0.0
    rewards, values, next_values = (x.flatten(1) for x in (rewards, values[..., :-1], values[..., 1:]))
    for t in reversed(range(rewards.shape[1])):
        if (t + 1) % EPISODE_STEPS == 0:
            advantage = 0.0
        delta = rewards[:, t] + gamma * next_values[:, t] - values[:, t]
        advantages[:, t] = advantage = delta + gamma * gae_lambda * advantage
    return advantages, advantages + values


def deal(s):
    return [x.to(s.obs.device) for x in s.script.deal_minibatches(len(s.obs), s.args.num_steps, s.args.num_minibatches, s.rng)]


def prepare(s):
    """What comes before the minibatches: sets s.samples, s.indices and s.weights."""
    values = s.agent.values(s.obs)
    advantages, returns = s.script.gae(s.rewards, values, s.args.gamma, s.args.gae_lambda)
    advantages, returns, old_values = (x.flatten(1) for x in (advantages, returns, values[..., :-1]))
    if s.script is toppo_mt50:
        s.agent.update_popart(returns)
        returns, old_values = s.agent.normalize(returns), s.agent.normalize(old_values)
    s.samples = s.flat_obs, s.flat_actions, old_logprobs(s), advantages, returns, old_values
    s.indices, s.weights = deal(s)


# A minibatch. A test holds minibatch_step to the scripts' lines.


def minibatch_step(s, index, weight, mark=lambda *stage: None):
    """mark(stage, side) is called after each stage."""
    agent, args, rng, task, samples, num_tasks, device = s.agent, s.args, s.rng, s.task, s.samples, len(s.obs), s.obs.device
    actor_shared, actor_own, critic_shared, critic_own = s.actor_shared, s.actor_own, s.critic_shared, s.critic_own
    optimizer, script, totals, popart = s.optimizer, s.script, s.totals, s.script is toppo_mt50
    mark("start", "both")
    mb_obs, mb_actions, mb_old_logprobs, mb_advantages, mb_returns, mb_old_values = (x[task, index] for x in samples)
    mark("gathering the minibatch", "both")
    mb_advantages -= (weight * mb_advantages).sum(1, keepdim=True)
    mb_advantages /= (weight * mb_advantages**2).sum(1, keepdim=True).sqrt() + 1e-8
    mean, actor_tape = script.forward_with_tape(agent.actor, mb_obs)
    policy = Normal(mean, agent.log_std[:, None].exp())
    ratio, entropy = (policy.log_prob(mb_actions).sum(-1) - mb_old_logprobs).exp(), policy.entropy().sum(-1)  # [K, n]
    actor_losses = script.policy_losses(ratio, mb_advantages, entropy, weight, args)
    mark("forward, losses", "actor")
    output, critic_tape = script.forward_with_tape(agent.critic, mb_obs)
    if popart:
        mb_values = agent.head_weight[:, None] * output.squeeze(-1) + agent.head_bias[:, None]
        critic_losses, hit = script.value_losses(mb_values, mb_old_values, mb_returns, weight, args)
    else:
        critic_losses, hit = script.value_losses(output.squeeze(-1), mb_old_values, mb_returns, weight, args)
    mark("forward, losses", "critic")
    actor_grads, actor_own_grads = script.per_task_gradients(actor_losses, actor_tape, actor_own)
    mark("per-task gradients", "actor")
    critic_grads, critic_own_grads = script.per_task_gradients(critic_losses, critic_tape, critic_own)
    mark("per-task gradients", "critic")
    actor_gram, critic_gram = torch.stack([script.gram(actor_grads), script.gram(critic_grads)]).cpu()
    spoiled = ~(actor_gram + critic_gram).diagonal().isfinite().numpy()
    assert not spoiled.any()
    mark("fp64 Grams", "both")
    if popart:
        actor_weights = torch.from_numpy(script.pcgrad_weights(actor_gram.numpy(), rng))
        mark("PCGrad's weights", "actor")
        fairgrad = solve_fairgrad(critic_gram.numpy(), alpha=1.0)
        critic_weights = torch.from_numpy(fairgrad.weights)
        mark("FairGrad's weights", "critic")
    else:
        actor_weights = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
        critic_weights = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
    script.set_combined_gradient(actor_shared, actor_grads, actor_own, actor_own_grads, actor_weights.to(device))
    mark("combined gradient", "actor")
    script.set_combined_gradient(critic_shared, critic_grads, critic_own, critic_own_grads, critic_weights.to(device))
    mark("combined gradient", "critic")
    nn.utils.clip_grad_norm_(actor_shared + actor_own, args.max_grad_norm)
    nn.utils.clip_grad_norm_(critic_shared + critic_own, args.max_grad_norm)
    optimizer.step()
    mark("gradient clip, Adam", "both")
    fairgrad_metrics = {}
    if popart:
        fairgrad_metrics = {
            "fairgrad_weight": critic_weights, "fairgrad_contribution": critic_weights * (critic_gram @ critic_weights),
            "fairgrad/kkt_residual": torch.tensor(fairgrad.residual),
            "fairgrad/newton_iterations": torch.tensor(float(fairgrad.iterations)),
            "fairgrad/used_scipy_fallback": torch.tensor(float(fairgrad.used_scipy_fallback)),
            "fairgrad/solver_fallback": torch.tensor(float(fairgrad.solver_fallback)),
        }  # fmt: skip
    for tag, value in {
        "losses/policy": actor_losses.mean(), "losses/value": critic_losses.mean(), "losses/entropy": entropy.mean(),
        "losses/approx_kl": (weight * (ratio - 1 - ratio.log())).sum(1).mean(),
        "losses/ratio_clip_fraction": (weight * ((ratio - 1).abs() > args.clip_coef)).sum(1).mean(),
        "losses/value_clip_fraction": (weight * hit).sum(1).mean(),
        **script.gradient_metrics(("actor", actor_gram, actor_weights), ("critic", critic_gram, critic_weights)),
        **fairgrad_metrics,
    }.items():  # fmt: skip
        totals.setdefault(tag, torch.zeros_like(value)).add_(value.detach())
    mark("diagnostics", "both")


def plain_step(s, index, weight):
    """The same with vanilla's losses, but one backward pass of their means through both networks."""
    agent, args, script = s.agent, s.args, s.script
    mb_obs, mb_actions, mb_old_logprobs, mb_advantages, mb_returns, mb_old_values = (x[s.task, index] for x in s.samples)
    mb_advantages -= (weight * mb_advantages).sum(1, keepdim=True)
    mb_advantages /= (weight * mb_advantages**2).sum(1, keepdim=True).sqrt() + 1e-8
    policy = Normal(agent.actor(mb_obs), agent.log_std[:, None].exp())
    ratio, entropy = (policy.log_prob(mb_actions).sum(-1) - mb_old_logprobs).exp(), policy.entropy().sum(-1)
    policy_losses = script.policy_losses(ratio, mb_advantages, entropy, weight, args)
    value_losses, hit = script.value_losses(agent.critic(mb_obs).squeeze(-1), mb_old_values, mb_returns, weight, args)
    s.optimizer.zero_grad()
    (policy_losses.mean() + value_losses.mean()).backward()
    nn.utils.clip_grad_norm_(s.actor_shared + s.actor_own, args.max_grad_norm)
    nn.utils.clip_grad_norm_(s.critic_shared + s.critic_own, args.max_grad_norm)
    s.optimizer.step()
    return [x.mean().detach() for x in (policy_losses, value_losses, entropy, weight * (ratio - 1 - ratio.log()), weight * hit)]


def now(s):
    if s.obs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(runs, s, repetitions):
    """runs: {name: function}, which take turns after a first call each. Returns {name: [repetitions]}."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(-1, repetitions):
        for name, run in runs.items():
            began = now(s)
            run()
            if repetition >= 0:
                seconds[name].append(now(s) - began)
    return {name: np.array(x) for name, x in seconds.items()}


def synthetic_worker(pipe, names, tasks, reward_version, seed, hidden_sizes):
    """In place of the scripts' environment_worker: sends random episodes of the same shapes."""
    rng = np.random.default_rng(seed)
    try:
        while True:
            _, goals, _ = pipe.recv()
            obs = rng.standard_normal((*goals.shape, EPISODE_STEPS + 1, OBS_DIM), np.float32)
            actions = rng.standard_normal((*goals.shape, EPISODE_STEPS, ACTION_DIM), np.float32)
            pipe.send((obs, actions, rng.random(actions.shape[:3], np.float32), np.zeros(goals.shape, bool)))
    except (EOFError, ConnectionError):
        pass  # the main process is gone


def run_and_print_memory(script, benchmark, args):
    """In a child process: one collect by the script's main(). The last line it prints is its peak memory, host and GPU, in MB."""
    script.environment_worker = synthetic_worker
    total = len(script.BENCHMARKS[benchmark]) * args.num_steps
    with tempfile.TemporaryDirectory() as run_dir:
        flags = {"benchmark": benchmark, "num-steps": args.num_steps, "total-timesteps": total, "run-dir": run_dir,
                 "update-epochs": args.memory_passes, "torch-threads": args.threads}  # fmt: skip
        sys.argv[1:] = [x for name, value in flags.items() for x in (f"--{name}", str(value))]
        sys.argv += ["--no-cuda"] if args.device == "cpu" else []
        script.main()
    host = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) / 1024
    print(json.dumps([host, torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else None]))


def benchmark_lines(benchmark, args):
    num_tasks = len(toppo_mt50.BENCHMARKS[benchmark])
    scripts = toppo_mt50, vanilla_mtppo, vanilla_mtppo
    toppo, vanilla, plain = (collect(script, num_tasks, args.num_steps, args.device) for script in scripts)
    for s in toppo, vanilla, plain:
        prepare(s)
    s, repeats, slow_gae = toppo, toppo.args.update_epochs, f"GAE, a loop over {args.num_steps:,} steps"
    values, returns, factors = s.agent.values(s.obs), s.samples[4], (s.args.gamma, s.args.gae_lambda)
    pieces = {  # how often in a collect, and what
        "log-probabilities of the rollout": (1, lambda: old_logprobs(s)),
        "PopArt's statistics": (1, lambda: s.agent.update_popart(returns)),
        "values": (repeats, lambda: s.agent.values(s.obs)),
        "GAE": (repeats, lambda: toppo_mt50.gae(s.rewards, values, *factors)),
        "normalised returns and old values": (repeats, lambda: (s.agent.normalize(returns), s.agent.normalize(returns))),
        "dealing the minibatches": (repeats, lambda: deal(s)),
    }
    runs = {name: run for name, (_, run) in pieces.items()} | {slow_gae: lambda: gae_over_all_steps(s.rewards, values, *factors)}
    seconds = seconds_of(runs, s, args.repetitions)
    pairs = zip(toppo_mt50.gae(s.rewards, values, *factors), gae_over_all_steps(s.rewards, values, *factors))
    difference = max((ours.flatten(1) - theirs).abs().max().item() for ours, theirs in pairs)

    def steps(s, step):
        minibatches = itertools.cycle(zip(s.indices, s.weights))
        return lambda: step(s, *next(minibatches))

    step_seconds = seconds_of({
        "TOPPO": steps(toppo, minibatch_step),
        "vanilla": steps(vanilla, minibatch_step),
        "plain PPO": steps(plain, plain_step),
    }, s, args.repetitions)  # fmt: skip
    stages: dict[str, dict[str, list[float]]] = {}  # name: {side: seconds}
    for _ in range(args.repetitions):
        last = now(s)

        def mark(stage, side):
            nonlocal last
            stages.setdefault(stage, {}).setdefault(side, []).append(now(s) - last)
            last = now(s)

        minibatch_step(s, s.indices[0], s.weights[0], mark)
    del stages["start"]

    lines = [
        f"## {benchmark}: {num_tasks * args.num_steps:,} steps",
        "",
        "| piece of TOPPO's update | ms | times per collect | s per collect |",
        "|---|---|---|---|",
    ]
    rows = [(name, np.median(seconds[name]), times) for name, (times, _) in pieces.items()]
    rows.append(("minibatch steps", np.median(step_seconds["TOPPO"]), repeats * s.args.num_minibatches))
    lines += [f"| {name} | {1e3 * t:.1f} | {times} | {t * times:.2f} |" for name, t, times in rows]
    lines.append(f"| all | | | {sum(t * times for _, t, times in rows):.1f} |")
    ratio = np.median(seconds[slow_gae] / seconds["GAE"])
    lines += [
        "",
        f"{slow_gae}: {1e3 * np.median(seconds[slow_gae]):.1f} ms, {ratio:.1f} times ours; largest difference in any step: "
        f"{difference:.1g}.",
        "",
        "| stage of TOPPO's minibatch step | actor, ms | critic, ms | both, ms |",
        "|---|---|---|---|",
    ]
    for stage, sides in stages.items():
        cells = [f"{1e3 * np.median(sides[side]):.2f}" if side in sides else "" for side in ("actor", "critic", "both")]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    of_sides = [sum(np.median(sides.get(side, 0.0)) for sides in stages.values()) for side in ("actor", "critic", "both")]
    lines += [f"| all | {' | '.join(f'{1e3 * t:.2f}' for t in of_sides)} |", ""]
    lines += ["| minibatch step of | ms | to vanilla | to plain PPO |", "|---|---|---|---|"]
    for name, t in step_seconds.items():
        ratios = " | ".join(f"{np.median(t / step_seconds[other]):.2f}×" for other in ("vanilla", "plain PPO"))
        lines.append(f"| {name} | {1e3 * np.median(t):.1f} | {ratios} |")
    lines += ["", "| peak memory of the main process | MB | on the GPU, MB |", "|---|---|---|"]
    for script in vanilla_mtppo, toppo_mt50:
        flags = ["--child-memory", script.SCRIPT, "--benchmark", benchmark, "--device", args.device, "--threads", args.threads,
                 "--num-steps", args.num_steps, "--memory-passes", args.memory_passes]  # fmt: skip
        output = subprocess.check_output([sys.executable, __file__, *map(str, flags)], text=True)
        host, gpu = json.loads(output.splitlines()[-1])
        lines.append(f"| {script.SCRIPT}.py | {host:,.0f} | {f'{gpu:,.0f}' if gpu else ''} |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", nargs="+", choices=["MT10", "MT50"], default=["MT10", "MT50"])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--num-steps", type=int, default=10_000, help="of each task in a collect (default 10,000)")
    parser.add_argument("--memory-passes", type=int, default=4, help="over the collect where memory is measured (training: 16)")
    parser.add_argument("--out", type=Path, default=REPORT, help="the Markdown file to write")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--child-memory", choices=["vanilla_mtppo", "toppo_mt50"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child_memory:
        return run_and_print_memory(importlib.import_module(args.child_memory), args.benchmark[0], args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    lines = [
        *header("Update", PACKAGES, device=args.device),
        f"Random data of a collect's size. What is compared takes turns; medians of {args.repetitions} repetitions, ratios are",
        "medians of the repetitions' ratios. Plain PPO is vanilla with one backward pass of the mean losses and no per-task",
        "gradients. Memory is the peak of a child process that runs the script's own main(), with random episodes in place of",
        f"simulated ones: one collect, {args.memory_passes} passes of 32 minibatches, evaluations on 50 goals before and after.",
        "",
    ]
    for benchmark in args.benchmark:
        lines += benchmark_lines(benchmark, args)
    write(lines, args)


if __name__ == "__main__":
    main()
