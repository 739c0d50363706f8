"""Environment steps per second of a rollout, policy and exploration noise included.

    python benchmarks/rollout.py                     # MT10 and MT50
    python benchmarks/rollout.py --benchmark MT10    # MT10 only
    python benchmarks/rollout.py --no-write          # prints only

Prints and writes results/bench_rollout.md: ours, Meta-World's own vector environments, EnvPool's
script, and MuJoCo alone as the limit. All rows are started and warmed up first, then they take
turns in every repetition. They play whole episodes, resets included. make_vec has the actor in the
main process, one forward pass for all tasks per step. EnvPool plays a whole collect, as its script
makes new pools for each. The limit is what gymnasium's do_simulation asks of MuJoCo in a step, five
substeps and mj_rnePostConstraint, on the models of the same tasks, along random walks of the hand
as random actions make them, shared out over one process per core: no observations, rewards or
resets.
"""

import importlib
import multiprocessing
import os
import sys
import time
from contextlib import suppress
from importlib.util import find_spec

import gymnasium
import mujoco
import numpy as np
import torch
from report import ROOT, header, parser, write

sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]
import vanilla_mtppo  # noqa: E402

EPISODE_STEPS = vanilla_mtppo.EPISODE_STEPS
CORES = os.cpu_count() or 1
ASYNC = "make_vec, async"
LIMIT = "limit: MuJoCo alone"
PACKAGES = ["torch", "numpy", "metaworld", "mujoco", "gymnasium", "envpool"]


# Each of these returns a function that plays a number of steps in each of K tasks.


def script_rollout(script, benchmark, seed):
    """A training script's own."""
    args = script.Args(benchmark=benchmark, seed=seed)
    envs = script.Envs(args)
    agent = script.Agent(len(args.tasks), args.hidden_sizes)
    rng = np.random.default_rng(seed)

    def play(steps):
        args.num_steps = steps
        script.collect_episodes(envs, agent, rng, args)

    play(EPISODE_STEPS)  # the workers start
    return play


def vector_rollout(envs, num_tasks):
    """The same on Meta-World's vector environments, which reset by themselves after an episode."""
    agent = vanilla_mtppo.Agent(num_tasks, vanilla_mtppo.Args.hidden_sizes)
    obs, _ = envs.reset()

    @torch.no_grad()
    def play(steps):
        nonlocal obs
        all_obs = np.zeros((steps, *obs.shape), np.float32)
        all_actions = np.zeros((steps, num_tasks, 4), np.float32)
        all_rewards = np.zeros((steps, num_tasks), np.float32)
        for t in range(steps):
            mean = agent.actor(torch.from_numpy(obs))  # [K, 4]
            actions = (mean + agent.log_std.exp() * torch.randn_like(mean)).numpy()
            all_obs[t] = obs
            all_actions[t] = actions
            obs, all_rewards[t], _, _, _ = envs.step(actions.clip(-1, 1))

    play(10)
    return play


def random_walk(env, rng):
    """Where the actions of an episode drag the hand to, and the fingers' controls."""
    actions = rng.standard_normal((EPISODE_STEPS, 4)).clip(-1, 1)
    position = env.data.mocap_pos.copy()
    hand = []
    for action in actions:
        position = (position + env.action_scale * action[:3]).clip(env.mocap_low, env.mocap_high)
        hand.append(position)
    return hand, np.stack([actions[:, 3], -actions[:, 3]], axis=1)


def mujoco_worker(pipe, envs, seed):
    """Steps MuJoCo alone in each of envs, as often as the main process says."""
    rng = np.random.default_rng(seed)
    starts = [(env.data.qpos.copy(), env.data.qvel.copy()) for env in envs]
    walks = [random_walk(env, rng) for env in envs]
    with suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            steps = pipe.recv()
            for env, (qpos, qvel), (hand, fingers) in zip(envs, starts, walks):
                data = env.data
                for t in range(steps):
                    if t % EPISODE_STEPS == 0:
                        data.qpos = qpos
                        data.qvel = qvel
                    data.mocap_pos = hand[t % EPISODE_STEPS]
                    data.ctrl = fingers[t % EPISODE_STEPS]
                    mujoco.mj_step(env.model, data, nstep=env.frame_skip)
                    mujoco.mj_rnePostConstraint(env.model, data)
            pipe.send(None)


def mujoco_alone(envs, seed):
    """envs: a list of this process's environments, which the workers get by fork."""
    context = multiprocessing.get_context("fork")
    pipes = []
    for w in range(min(CORES, len(envs))):
        pipe, worker_end = context.Pipe()
        args = (worker_end, envs[w::CORES], seed + w)
        context.Process(target=mujoco_worker, args=args, daemon=True).start()
        worker_end.close()
        pipes.append(pipe)

    def play(steps):
        for pipe in pipes:
            pipe.send(steps)
        for pipe in pipes:
            pipe.recv()

    play(10)
    return play


def whole_episodes(steps):
    """Steps in as many episodes as end within so many, at least one."""
    return max(1, steps // EPISODE_STEPS) * EPISODE_STEPS


def rows_of(benchmark, args):
    """Starts all: [(name, play or None, steps per task)], and what is to be closed."""
    num_tasks = len(vanilla_mtppo.BENCHMARKS[benchmark])
    options = {"use_one_hot": True, "seed": args.seed, "num_goals": args.goals}
    vectors = {
        strategy: gymnasium.make_vec(f"Meta-World/{benchmark}", vector_strategy=strategy, **options)
        for strategy in ("sync", "async")
    }
    rows = [
        (f"make_vec, {strategy}", vector_rollout(envs, num_tasks), args.steps)
        for strategy, envs in vectors.items()
    ]
    sync = vectors["sync"]
    assert isinstance(sync, gymnasium.vector.SyncVectorEnv)  # its environments are in this process
    limit = mujoco_alone([env.unwrapped for env in sync.envs], args.seed)
    ours = script_rollout(vanilla_mtppo, benchmark, args.seed)
    rows.append(("ours", ours, whole_episodes(args.steps)))
    envpool = None
    if find_spec("envpool"):
        script = importlib.import_module("vanilla_envpool")
        envpool = script_rollout(script, benchmark, args.seed)
    rows.append(("EnvPool", envpool, whole_episodes(args.envpool_steps)))
    rows.append((LIMIT, limit, args.steps))
    return rows, vectors.values()


def measure(benchmark, args):
    """Returns the lines of a benchmark's table."""
    num_tasks = len(vanilla_mtppo.BENCHMARKS[benchmark])
    rows, vectors = rows_of(benchmark, args)
    rates: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    for repetition in range(args.repetitions):
        for name, play, steps in rows:
            if play:
                began = time.perf_counter()
                play(steps)
                rates[name].append(num_tasks * steps / (time.perf_counter() - began))
                at = f"{benchmark}, {repetition + 1}/{args.repetitions}"
                print(f"{at}, {name}: {rates[name][-1]:,.0f}", file=sys.stderr)
    for envs in vectors:
        envs.close()

    lines = [
        f"## {benchmark}",
        "",
        "| | steps per task | steps/s | to async | share of the limit |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, play, steps in rows:
        cells = "not installed | | "
        if play:
            to_async = np.median(np.divide(rates[name], rates[ASYNC]))
            share = 100 * np.median(np.divide(rates[name], rates[LIMIT]))
            cells = f"{np.median(rates[name]):,.0f} | {to_async:.2f}× | {share:.0f} %"
        lines.append(f"| {name} | {steps:,} | {cells} |")
    return [*lines, ""]


def main():
    flags = parser(__doc__, "bench_rollout.md", repetitions=5)

    def number(name, default, text):
        flags.add_argument(name, type=int, default=default, help=f"{text} (default {default:,})")

    number("--steps", EPISODE_STEPS, "per task and repetition, an episode")
    number("--envpool-steps", 10_000, "the same for EnvPool, a collect")
    number("--goals", 50, "of a task in make_vec; fewer start faster")
    number("--seed", 1, "of environments, goals and noise")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.manual_seed(args.seed)
    lines = [
        *header("Rollout", PACKAGES),
        "Environment steps per second of all tasks together, with the 400-400-400 actor and",
        f"exploration noise. The rows take turns; medians of {args.repetitions} repetitions,",
        "ratios are medians of the repetitions' ratios. `make_vec` is Meta-World's own, with the",
        "actor in the main process. The limit is MuJoCo's five substeps and mj_rnePostConstraint",
        "in one process per core, with nothing else to do.",
        "",
    ]
    for benchmark in args.benchmark:
        lines += measure(benchmark, args)
    write(lines, args)


if __name__ == "__main__":
    main()
