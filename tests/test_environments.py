"""Episodes are Meta-World's own, evaluation meets each of the 50 goals, and what a run draws."""

import math
import pickle

import metaworld
import numpy as np
import pytest
import torch
import vanilla_mtppo as ppo
from scripts import every_script, scalars
from torch.utils.tensorboard import SummaryWriter

TASKS = ("push-v3", "reach-v3", "door-open-v3")
SEED = 5


def benchmark(name):
    return metaworld.MT1(name, seed=SEED)


def replay(name, goal, actions, reward_version="v2"):
    """The episode through Meta-World's own interface: observations, rewards, successes."""
    env = benchmark(name).train_classes[name](reward_function_version=reward_version)
    env.set_task(benchmark(name).train_tasks[goal])
    start, _ = env.reset()
    steps = [env.step(action) for action in actions.clip(-1, 1)]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    obs, rewards, _, _, infos = zip(*steps)
    success = [bool(info["success"]) for info in infos]
    return np.array([start, *obs], np.float32), np.array(rewards, np.float32), success


def drawn_to_the_goal(module, num_tasks):
    """An agent whose hand goes straight to the goal, which is enough in reach-v3."""
    agent = module.Agent(num_tasks, (6,))
    first, _, last = agent.actor
    with torch.no_grad():
        for p in agent.actor.parameters():
            p.zero_()
        for unit in range(6):
            axis, sign = unit // 2, 1 - 2 * (unit % 2)
            first.weight[unit, axis] = -10 * sign  # the hand
            first.weight[unit, 36 + axis] = 10 * sign  # the goal
            last.weight[axis, unit] = sign
    return agent


@pytest.mark.parametrize(("reward_version", "tasks"), [("v2", TASKS), ("v1", ("push-v3",))])
def test_episodes_are_metaworlds_own(reward_version, tasks, fork):
    """In two processes, one of which has two tasks that are not neighbours."""
    fork(ppo)
    flags = {"tasks": tasks, "reward_version": reward_version, "num_workers": 2}
    args = ppo.Args(seed=SEED, hidden_sizes=(6,), **flags)
    workers = ppo.start_workers(args)
    K = len(tasks)
    agent = drawn_to_the_goal(ppo, K)
    goals = np.array([9, 41, 0])[:K]
    noise = np.random.default_rng(0).normal(size=(K, 500, 4)).astype(np.float32)
    noise[:, 250:, 0] += 10  # away from a goal that was reached before
    episodes = ppo.play(workers, agent.actor, goals, noise)
    again = ppo.play(workers, agent.actor, goals, noise)
    for name, x in episodes.items():  # nothing is left of an episode, or continuing is not exact
        np.testing.assert_array_equal(again[name], x)
    assert np.abs(episodes["actions"]).max() > 1  # as drawn; the environment sees them clipped

    for k, name in enumerate(tasks):
        obs, actions = episodes["obs"][k], episodes["actions"][k]
        np.testing.assert_array_equal(obs[:, 39:], np.tile(np.eye(K)[k], (501, 1)))
        with torch.no_grad():
            means = agent.actor(torch.from_numpy(obs[:-1])).numpy()
        np.testing.assert_allclose(actions, means + noise[k], atol=1e-4)
        expected_obs, rewards, success = replay(name, goals[k], actions, reward_version)
        np.testing.assert_array_equal(obs[:, :39], expected_obs)
        np.testing.assert_array_equal(episodes["rewards"][k], rewards)
        assert episodes["success"][k] == any(success)
        if name == "reach-v3":
            assert any(success) and not success[-1]  # one that does not last counts
    if reward_version == "v1":
        v2_rewards = replay("push-v3", goals[0], episodes["actions"][0])[1]
        assert not np.allclose(rewards, v2_rewards)


def test_evaluation_on_real_metaworld(fork, tmp_path, monkeypatch):
    """The mean action on each goal, up to the first success, and rows that say so."""
    goals = [pickle.loads(task.data)["rand_vec"] for task in benchmark("push-v3").train_tasks]
    assert len(np.unique(goals, axis=0)) == 50
    fork(ppo)
    args = ppo.Args(tasks=TASKS[:2], seed=SEED, eval_episodes=3, hidden_sizes=(6,))
    agent = drawn_to_the_goal(ppo, 2)
    rounds = recorded(ppo, monkeypatch)
    with SummaryWriter(tmp_path) as writer:
        rows = ppo.evaluate(ppo.start_workers(args), agent, args, writer, step=7)

    for goal, (_, _, episodes) in enumerate(rounds):
        for k, name in enumerate(args.tasks):
            obs, rewards, success = replay(name, goal, episodes["actions"][k])
            end = success.index(True) + 1 if any(success) else 500
            np.testing.assert_array_equal(episodes["obs"][k, : end + 1, :39], obs[: end + 1])
            np.testing.assert_array_equal(episodes["rewards"][k, :end], rewards[:end])
            assert not episodes["rewards"][k, end:].any()
            with torch.no_grad():
                means = agent.actor(torch.from_numpy(episodes["obs"][k, :end])).numpy()
            np.testing.assert_allclose(episodes["actions"][k, :end], means, atol=1e-4)
            assert episodes["success"][k] == any(success) == (name == "reach-v3")
    assert [row[:4] for row in rows] == [(7, "push-v3", 3, 0.0), (7, "reach-v3", 3, 1.0)]
    returns = np.mean([episodes["rewards"].sum(1) for _, _, episodes in rounds], axis=0)
    assert [row[4] for row in rows] == pytest.approx(list(returns), abs=1e-3)


# --- Runs in this process


def recorded(module, monkeypatch, play=None):
    """Notes what play, the script's or the given one, is asked for and returns."""
    calls = []
    play = play or module.play

    def recording_play(workers, actor, goals, noise=None):
        calls.append((goals, noise, play(workers, actor, goals, noise)))
        return calls[-1][2]

    monkeypatch.setattr(module, "play", recording_play)
    return calls


def made_up(module, monkeypatch):
    """Puts noise in place of environments and their processes. Returns what is asked for."""

    def play(workers, actor, goals, noise):
        rng, K = np.random.default_rng(goals), len(goals)
        shapes = {"obs": (K, 501, 39 + K), "actions": (K, 500, 4), "rewards": (K, 500)}
        episodes = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        episodes = {name: x.astype(np.float32) for name, x in episodes.items()}
        return episodes | {"success": rng.random(K) < 0.5}

    monkeypatch.setattr(module, "start_workers", lambda args: [])
    return recorded(module, monkeypatch, play)


def short_run(module, run_dir, **flags):
    """A run of one task. Returns its checkpoint."""
    few = {"num_steps": module.EPISODE_STEPS, "update_epochs": 1, "num_minibatches": 2}
    few |= {"tasks": ("reach-v3",), "total_timesteps": 500, "eval_episodes": 1, "num_workers": 1}
    module.main(module.Args(run_dir=str(run_dir), hidden_sizes=(8,), cuda=False, **few | flags))
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


@every_script
def test_every_script_trains_on_real_metaworld(module, fork, tmp_path, monkeypatch):
    """On short episodes, and with the step size and epsilon of Adam that the flags say."""
    fork(module)
    monkeypatch.setattr(module, "EPISODE_STEPS", 40)
    rounds = recorded(module, monkeypatch)
    flags = {"seed": SEED, "total_timesteps": 40, "learning_rate": 0.02, "adam_eps": 0.003}
    [group] = short_run(module, tmp_path, **flags)["optimizer"]["param_groups"]
    assert (group["lr"], group["eps"]) == (0.02, 0.003)
    assert len(rounds) == 3  # an evaluation, an episode to train on, an evaluation
    for goals, noise, episodes in rounds:
        if noise is None or "envpool" not in module.SCRIPT:
            obs, rewards, _ = replay("reach-v3", goals[0], episodes["actions"][0])
            np.testing.assert_array_equal(episodes["obs"][0, :, :39], obs)
            np.testing.assert_array_equal(episodes["rewards"][0], rewards)
    logged = scalars(tmp_path)
    assert all(math.isfinite(x) for series in logged.values() for _, x in series)
    train_return = rounds[1][2]["rewards"].sum()
    assert logged["train_return/mean"] == [(40, pytest.approx(train_return, rel=1e-4))]


def test_a_collects_randomness_is_the_seeds_and_its_own(tmp_path, monkeypatch):
    calls = made_up(ppo, monkeypatch)
    for i, seed in enumerate((1, 2, 1)):
        short_run(ppo, tmp_path / str(i), seed=seed, total_timesteps=1_000)
    noises = [noise for _, noise, _ in calls if noise is not None]  # two of each run
    for i, noise in enumerate(noises):
        for j in range(i):
            assert np.array_equal(noise, noises[j]) == (i - j == 4)


@pytest.mark.parametrize("eval_interval", [300, 1_000, 1_250, 100_000])
def test_evaluation_is_due_at_the_start_after_every_interval_and_at_the_end(
    eval_interval, tmp_path, monkeypatch
):
    made_up(ppo, monkeypatch)
    flags = {"eval_interval": eval_interval, "total_timesteps": 3_999}  # in whole collects
    rows = short_run(ppo, tmp_path, **flags)["evals"]
    multiples = range(0, 3_501, eval_interval)
    expected = {500 * math.ceil(step / 500) for step in multiples} | {3_500}
    assert [row[0] for row in rows] == sorted(expected)


def test_evaluations_goals_and_rows(tmp_path, monkeypatch):
    """One episode a task and goal, without noise; rows and what is logged are their means."""
    args = ppo.Args(benchmark="MT10")
    calls = made_up(ppo, monkeypatch)
    with SummaryWriter(tmp_path) as writer:
        rows = ppo.evaluate([], ppo.Agent(10, (8,)), args, writer, step=1_000)
    goals, noises, episodes = zip(*calls)
    assert set(noises) == {None}
    np.testing.assert_array_equal(np.sort(goals, axis=0), np.tile(np.arange(50)[:, None], 10))
    rates = np.mean([e["success"] for e in episodes], axis=0)
    returns = np.mean([e["rewards"].sum(1) for e in episodes], axis=0)
    assert [row[:3] for row in rows] == [(1_000, task, 50) for task in args.tasks]
    assert [row[3] for row in rows] == pytest.approx(list(rates), abs=1e-4)
    assert [row[4] for row in rows] == pytest.approx(list(returns), abs=1e-3)
    logged = {tag: value for tag, [(_, value)] in scalars(tmp_path).items()}
    expected = {f"eval_success/{name}": rate for name, rate in zip(args.tasks, rates)}
    expected["eval_success/mean"] = rates.mean()
    expected["eval/success_worst_5"] = np.sort(rates)[:5].mean()
    assert logged == pytest.approx(expected, abs=1e-4)


def test_rollouts_goals_and_noise(monkeypatch):
    """Goals at random, noise of each task's own standard deviation, episodes in order."""
    args = ppo.Args(tasks=TASKS, num_steps=4_000)
    agent = ppo.Agent(3, (8,))
    agent.log_std.data = torch.linspace(-2, 1, 12).view(3, 4)
    calls = made_up(ppo, monkeypatch)
    rollout = ppo.collect_rollout([], agent, np.random.default_rng(0), args)
    goals, noise, episodes = zip(*calls)
    for e in range(8):
        for name, x in rollout.items():
            np.testing.assert_array_equal(x[:, e], episodes[e][name])
    assert set(np.ravel(goals)) <= set(range(50))
    assert len(np.unique(goals)) > 12  # of 24
    z = np.array(noise) / agent.log_std.detach().exp().numpy()[:, None]  # [8, K, 500, 4]
    assert np.abs(z.std(axis=(0, 2)) - 1).max() < 0.06  # four standard errors
    assert np.abs(z.mean(axis=(0, 2))).max() < 0.07
    assert len(np.unique(z)) > 0.99 * z.size  # none is used twice
