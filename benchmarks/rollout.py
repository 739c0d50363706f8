"""Environment steps per second of a rollout, policy and exploration noise included: ours, Meta-World's own vector environments,
EnvPool, and MuJoCo alone as the limit.

    python benchmarks/rollout.py                     MT10 and MT50; prints and writes results/bench_rollout.md
    python benchmarks/rollout.py --benchmark MT10    MT10 only
    python benchmarks/rollout.py --no-write          prints only

All rows are started and warmed up first, then they take turns in every repetition. They play whole episodes, resets included.
make_vec has the actor in the main process, one forward pass for all tasks per step. EnvPool plays a whole collect, as its script
makes new pools for each. The limit is what gymnasium's do_simulation asks of MuJoCo in a step, five substeps and
mj_rnePostConstraint, on the models of the same tasks, along random walks of the hand as random actions make them, shared out over
one process per core: no observations, rewards or resets.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]
import vanilla_mtppo  # noqa: E402  before torch, as it sets GOMP_SPINCOUNT
import gymnasium  # noqa: E402, I001
import mujoco  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from report import header, write  # noqa: E402

REPORT = ROOT / "results" / "bench_rollout.md"
EPISODE_STEPS, HIDDEN_SIZES = vanilla_mtppo.EPISODE_STEPS, vanilla_mtppo.Args.hidden_sizes
CORES = os.cpu_count() or 1
ASYNC, LIMIT = "make_vec, async", "limit: MuJoCo alone"
PACKAGES = "torch", "numpy", "metaworld", "mujoco", "gymnasium", "envpool"


# Each of these returns a function that plays a number of steps in each of K tasks.


def script_rollout(script, names, num_envs, seed):
    """What a training script's main() does for a rollout, with the one-hot that it appends."""
    envs, rng = script.TaskEnvs(names, script.Args(seed=seed, num_envs_per_task=num_envs)), np.random.default_rng(seed)
    agent = script.Agent(len(names), HIDDEN_SIZES)

    def play(steps):
        shape = len(names), steps // EPISODE_STEPS  # [K, E]
        noise = rng.standard_normal((*shape, EPISODE_STEPS, 4), np.float32) * agent.log_std.exp().detach().numpy()[:, None, None]
        obs = torch.from_numpy(envs.play(agent, rng.integers(script.NUM_GOALS, size=shape), noise)[0])
        return torch.cat([obs, torch.eye(len(names))[:, None, None].expand(*obs.shape[:3], -1)], dim=-1)

    play(EPISODE_STEPS * num_envs)  # the workers start
    return play


def vector_rollout(envs, num_tasks):
    """The same on Meta-World's vector environments, which reset by themselves after an episode's last step."""
    agent, (obs, _) = vanilla_mtppo.Agent(num_tasks, HIDDEN_SIZES), envs.reset()

    @torch.no_grad()
    def play(steps):
        nonlocal obs
        kept = [np.zeros((steps, num_tasks, *shape), np.float32) for shape in (obs.shape[1:], (4,), ())]
        for t in range(steps):
            mean = agent.actor(torch.from_numpy(obs))  # [K, 4]
            actions = (mean + agent.log_std.exp() * torch.randn_like(mean)).numpy()
            kept[0][t], kept[1][t] = obs, actions
            obs, kept[2][t], _, _, _ = envs.step(actions.clip(-1, 1))

    play(10)
    return play


def mujoco_worker(pipe, envs, seed):
    """Steps MuJoCo alone in each of envs, as often as the main process says."""
    rng, walks = np.random.default_rng(seed), []
    for env in envs:  # where actions drag the hand to, and the fingers' controls
        actions, hand = rng.standard_normal((EPISODE_STEPS, 4)).clip(-1, 1), [env.data.mocap_pos.copy()]
        for action in actions:
            hand.append((hand[-1] + env.action_scale * action[:3]).clip(env.mocap_low, env.mocap_high))
        walks.append((env.data.qpos.copy(), env.data.qvel.copy(), hand[1:], np.stack([actions[:, 3], -actions[:, 3]], axis=1)))
    try:
        while True:
            steps = pipe.recv()
            for env, (qpos, qvel, hand, fingers) in zip(envs, walks):
                model, data = env.model, env.data
                for t in range(steps):
                    if t % EPISODE_STEPS == 0:
                        data.qpos, data.qvel = qpos, qvel
                    data.mocap_pos, data.ctrl = hand[t % EPISODE_STEPS], fingers[t % EPISODE_STEPS]
                    mujoco.mj_step(model, data, nstep=env.frame_skip)
                    mujoco.mj_rnePostConstraint(model, data)
            pipe.send(None)
    except (EOFError, ConnectionError):
        pass  # the main process is gone


def mujoco_alone(envs, seed):
    """envs: a list of this process's environments, which the workers get by fork."""
    context, pipes = multiprocessing.get_context("fork"), []
    for w in range(min(CORES, len(envs))):
        pipe, worker_end = context.Pipe()
        context.Process(target=mujoco_worker, args=(worker_end, envs[w::CORES], seed + w), daemon=True).start()
        worker_end.close()
        pipes.append(pipe)

    def play(steps):
        for pipe in pipes:
            pipe.send(steps)
        for pipe in pipes:
            pipe.recv()

    play(10)
    return play


def measure(benchmark, args):
    """Returns the lines of a benchmark's table."""
    names = list(vanilla_mtppo.BENCHMARKS[benchmark])
    options = dict(use_one_hot=True, seed=args.seed, num_goals=args.goals)
    vectors = {s: gymnasium.make_vec(f"Meta-World/{benchmark}", vector_strategy=s, **options) for s in ("sync", "async")}
    rows = [(f"make_vec, {s}", vector_rollout(envs, len(names)), args.steps) for s, envs in vectors.items()]  # name, play, steps
    assert isinstance(vectors["sync"], gymnasium.vector.SyncVectorEnv)  # whose environments are in this process
    limit = LIMIT, mujoco_alone([env.unwrapped for env in vectors["sync"].envs], args.seed), args.steps
    scripts = {"ours": (vanilla_mtppo, args.steps), "EnvPool": (None, args.envpool_steps)}
    if find_spec("envpool") and (ROOT / "ablations/vanilla_envpool.py").exists():
        scripts["EnvPool"] = importlib.import_module("vanilla_envpool"), args.envpool_steps
    for name, (script, steps) in scripts.items():
        for n in args.num_envs_per_task:
            play = script and script_rollout(script, names, n, args.seed)
            rows.append((f"{name}, {n} a task", play, max(steps, EPISODE_STEPS * n)))
    rows.append(limit)

    rates: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    for repetition in range(args.repetitions):
        for name, play, steps in rows:
            if play:
                began = time.perf_counter()
                play(steps)
                rates[name].append(len(names) * steps / (time.perf_counter() - began))
                print(f"{benchmark}, {repetition + 1}/{args.repetitions}, {name}: {rates[name][-1]:,.0f}", file=sys.stderr)
    for envs in vectors.values():
        envs.close()

    lines = [f"## {benchmark}", "", "| | steps per task | steps/s | to async | share of the limit |", "|---|---|---|---|---|"]
    for name, play, steps in rows:
        cells = "not installed | | "
        if play:
            to_async, share = (np.median(np.divide(rates[name], rates[other])) for other in (ASYNC, LIMIT))
            cells = f"{np.median(rates[name]):,.0f} | {to_async:.2f}× | {100 * share:.0f} %"
        lines.append(f"| {name} | {steps:,} | {cells} |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", nargs="+", choices=["MT10", "MT50"], default=["MT10", "MT50"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--num-envs-per-task", type=int, nargs="+", default=[1, 4], help="of ours and EnvPool (default 1 4)")
    parser.add_argument("--steps", type=int, default=500, help="per task and repetition (default 500, an episode)")
    parser.add_argument("--envpool-steps", type=int, default=10_000, help="the same for EnvPool (default 10,000, a collect)")
    parser.add_argument("--goals", type=int, default=50, help="of a task in make_vec (default 50; fewer start faster)")
    parser.add_argument("--threads", type=int, default=0, help="PyTorch's in the main process; 0: PyTorch's default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPORT, help="the Markdown file to write")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    if any(args.envpool_steps % (EPISODE_STEPS * n) for n in args.num_envs_per_task):
        parser.error("--envpool-steps: expected whole episodes of 500 steps, as many in each of a task's environments")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.manual_seed(args.seed)
    lines = [
        *header("Rollout", PACKAGES),
        "Environment steps per second of all tasks together, with the 400-400-400 actor and exploration noise. The rows take",
        f"turns; medians of {args.repetitions} repetitions, ratios are medians of the repetitions' ratios. `n a task` is",
        "`--num-envs-per-task`. `make_vec` is Meta-World's own, with the actor in the main process. The limit is MuJoCo's five",
        "substeps and mj_rnePostConstraint in one process per core, with nothing else to do.",
        "",
    ]
    for benchmark in args.benchmark:
        lines += measure(benchmark, args)
    write(lines, args)


if __name__ == "__main__":
    main()
