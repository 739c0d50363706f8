"""Episodes are Meta-World's own, evaluation meets each of the 50 goals, and what is logged."""

import functools
import math

import metaworld
import numpy as np
import pytest
import torch
import vanilla_mtppo as ppo
from scripts import MODULES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

every_script = pytest.mark.parametrize("module", MODULES.values(), ids=lambda m: m.SCRIPT)

TASKS = ("drawer-close-v3", "handle-press-v3", "reach-v3")
SEED = 5


def scripted_agent():
    """Closes the drawer and reaches every goal, but presses the handle for some goals only.

    Each hidden unit is relu(difference of two numbers in obs), of one task.
    """
    agent = ppo.Agent(3, (16,))
    first, _, last = agent.actor
    one_hot = slice(39, 42)
    differences = [(1, 4, 0)]  # handle-press-v3: the handle's x less the hand's
    differences += [(2, 36 + axis, axis) for axis in range(3)]  # reach-v3: goal less hand
    with torch.no_grad():
        for p in agent.actor.parameters():
            p.zero_()
        first.weight[0, 39:41] = 1  # drawer-close-v3 and handle-press-v3: back and down
        last.weight[1, 0] = 1
        last.weight[2, 0] = -1
        unit = 1
        for k, target, axis in differences:
            for sign in (1, -1):
                first.weight[unit, target] = sign
                first.weight[unit, axis] = -sign
                first.weight[unit, one_hot] = -10  # off in all tasks
                first.weight[unit, 39 + k] = 0  # but k
                last.weight[axis, unit] = 10 * sign
                unit += 1
    return agent


@functools.cache
def benchmark(name):
    return metaworld.MT1(name, seed=SEED)


def reference_env(name, goal, reward_version="v2"):
    """The same environment through Meta-World's own interface."""
    mt1 = benchmark(name)
    env = mt1.train_classes[name](reward_function_version=reward_version)
    env.set_task(mt1.train_tasks[goal])
    return env


@pytest.fixture(scope="module")
def envs():
    """Three tasks in two processes, one of which has two that are not neighbours."""
    return ppo.Envs(ppo.Args(tasks=TASKS, seed=SEED, num_workers=2, hidden_sizes=(16,)))


def assert_episodes_are_metaworlds_own(envs, agent, tasks, reward_version):
    """Also the episode after another one: of that nothing may be left, or to continue is not exact.

    Returns the episodes, and for each task the steps at which it was a success.
    """
    num_tasks = len(tasks)
    goals = np.array([9, 41, 0])[:num_tasks]
    noise = np.random.default_rng(0).normal(size=(num_tasks, 500, 4)).astype(np.float32)
    noise[:, 250:, 0] += 5  # away from a goal that was reached before
    episodes = envs.play(agent, goals, noise)
    assert episodes.obs.shape == (num_tasks, 501, 39 + num_tasks)
    assert episodes.actions.shape == (num_tasks, 500, 4)
    assert episodes.rewards.shape == (num_tasks, 500)
    assert episodes.success.shape == (num_tasks,)
    assert np.abs(episodes.actions).max() > 1  # as drawn; only the environment sees them clipped
    for again, first in zip(envs.play(agent, goals, noise), episodes):
        np.testing.assert_array_equal(again, first)

    successes = []
    for k, name in enumerate(tasks):
        obs = episodes.obs[k]
        one_hot = np.tile(np.eye(num_tasks)[k], (501, 1))
        np.testing.assert_array_equal(obs[:, 39:], one_hot)
        with torch.no_grad():
            means = agent.actor(torch.from_numpy(obs[:-1])).numpy()
        np.testing.assert_allclose(episodes.actions[k], means + noise[k], atol=1e-5)

        env = reference_env(name, goals[k], reward_version)
        start = env.reset()[0]
        steps = [env.step(action) for action in episodes.actions[k].clip(-1, 1)]
        expected_obs = np.array([start] + [step[0] for step in steps], np.float32)
        np.testing.assert_array_equal(obs[:, :39], expected_obs)
        expected_rewards = np.array([step[1] for step in steps], np.float32)
        np.testing.assert_array_equal(episodes.rewards[k], expected_rewards)
        successes.append([t for t in range(500) if steps[t][4]["success"]])
        assert episodes.success[k] == (len(successes[k]) > 0)
    return episodes, successes


def test_episodes_are_metaworlds_own(envs):
    agent = scripted_agent()
    episodes, successes = assert_episodes_are_metaworlds_own(envs, agent, TASKS, "v2")
    assert episodes.success.all()
    assert 0 < max(successes[2]) < 300  # a success that does not last counts


def test_episodes_are_metaworlds_own_with_its_first_rewards():
    tasks = ("push-v3",)
    args = ppo.Args(tasks=tasks, seed=SEED, reward_version="v1", hidden_sizes=(16,))
    torch.manual_seed(0)
    agent = ppo.Agent(1, (16,))
    episodes, _ = assert_episodes_are_metaworlds_own(ppo.Envs(args), agent, tasks, "v1")
    assert not episodes.success.any()
    env = reference_env("push-v3", 9, "v2")
    env.reset()
    v2 = [env.step(action)[1] for action in episodes.actions[0].clip(-1, 1)]
    assert not np.allclose(episodes.rewards[0], v2)


def test_episodes_end_by_truncation_after_500_steps():
    env = reference_env("reach-v3", 0)
    env.reset()
    ends = [env.step(np.zeros(4))[2:4] for _ in range(ppo.EPISODE_STEPS)]
    assert ends == [(False, False)] * 499 + [(False, True)]


# --- Evaluation


def scalars(log_dir):
    events = EventAccumulator(str(log_dir))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        yield writer


def test_evaluation_on_real_metaworld(envs, writer, tmp_path, monkeypatch):
    """Each goal once, the mean action, the end at the first success, and rows that say so."""
    agent = scripted_agent()
    rounds = []

    def recording_play(*args):
        rounds.append(play(*args))
        return rounds[-1]

    play = envs.play
    monkeypatch.setattr(envs, "play", recording_play)
    args = ppo.Args(tasks=TASKS, seed=SEED, hidden_sizes=(16,))
    rows = ppo.evaluate(envs, agent, args, writer, step=7)
    writer.flush()
    obs, actions, rewards, success = (np.stack(x, axis=1) for x in zip(*rounds))  # [K, 50, ...]
    assert success.shape == (3, 50)
    assert success[[0, 2]].all()
    assert 0 < success[1].sum() < 50  # the handle's episodes end in both ways

    for k, name in enumerate(TASKS):
        goals = benchmark(name).train_tasks
        assert len(goals) == 50
        env = reference_env(name, 0)
        starts = []
        for goal in goals:
            env.set_task(goal)
            starts.append(env.reset()[0].astype(np.float32))
        assert len(np.unique(starts, axis=0)) == 50
        played = obs[k, :, 0, :39]
        assert sorted(played.tolist()) == sorted(np.array(starts).tolist())

        for goal in (0, 24, 49):
            env.set_task(goals[goal])
            state = env.reset()[0].astype(np.float32)
            e = np.flatnonzero((played == state).all(axis=1)).item()
            total = 0.0
            for t in range(500):
                with torch.no_grad():
                    with_task = np.concatenate([state, np.eye(3, dtype=np.float32)[k]])
                    action = agent.actor(torch.from_numpy(with_task)).numpy()
                np.testing.assert_allclose(actions[k, e, t], action, atol=1e-5)
                # What was played and not its equal up to rounding, which physics would magnify
                state, reward, _, _, info = env.step(actions[k, e, t].clip(-1, 1))
                state = state.astype(np.float32)
                assert rewards[k, e, t] == np.float32(reward)
                total += reward
                if info["success"]:
                    break
            assert success[k, e] == info["success"]
            assert rewards[k, e].sum() == pytest.approx(total, rel=1e-5)  # nothing after it

    rates = success.mean(axis=1)
    returns = rewards.sum(axis=2).mean(axis=1)
    for k, (step, task, episodes, rate, mean_return) in enumerate(rows):
        assert (step, task, episodes) == (7, TASKS[k], 50)
        assert rate == pytest.approx(rates[k], abs=1e-9)
        assert mean_return == pytest.approx(returns[k], abs=1e-3)
    logged = {tag: value for tag, [(step, value)] in scalars(tmp_path).items()}
    expected = {f"eval_success/{name}": rate for name, rate in zip(TASKS, rates)}
    expected["eval_success/mean"] = rates.mean()
    expected["eval/success_worst_1"] = rates.min()
    expected["eval/success_worst_3"] = rates.mean()
    assert logged == pytest.approx(expected, rel=1e-6)


def fabricated_envs(module, monkeypatch, play):
    """Envs without processes, whose play is the given one."""
    monkeypatch.setattr(module.Envs, "play", lambda self, *args: play(*args))
    return object.__new__(module.Envs)


def fabricated_episodes(module, num_tasks, rng):
    return module.Episodes(
        obs=rng.normal(size=(num_tasks, 501, 39 + num_tasks)).astype(np.float32),
        actions=rng.normal(size=(num_tasks, 500, 4)).astype(np.float32),
        rewards=rng.normal(size=(num_tasks, 500)).astype(np.float32),
        success=rng.random(num_tasks) < 0.5,
    )


@every_script
@pytest.mark.parametrize("num_goals", [50, 3])
def test_evaluations_goals_and_rows(module, num_goals, monkeypatch, writer, tmp_path):
    """In every script: one episode a task and goal, without noise; rows are their means."""
    args = module.Args(benchmark="MT10")
    assert args.eval_episodes == 50
    args.eval_episodes = num_goals
    agent = module.Agent(10, (8,))
    rng = np.random.default_rng(0)
    goals_played = []
    episodes = []

    def play(with_agent, goals, noise=None):
        assert with_agent is agent
        assert noise is None
        goals_played.append(goals)
        episodes.append(fabricated_episodes(module, 10, rng))
        return episodes[-1]

    envs = fabricated_envs(module, monkeypatch, play)
    rows = module.evaluate(envs, agent, args, writer, step=1_000)
    writer.flush()
    goals_played = np.array(goals_played)
    each_once = np.tile(np.arange(num_goals)[:, None], 10)
    np.testing.assert_array_equal(np.sort(goals_played, axis=0), each_once)

    rates = np.mean([e.success for e in episodes], axis=0)
    returns = np.mean([e.rewards.sum(1) for e in episodes], axis=0)
    assert [row[:3] for row in rows] == [(1_000, task, num_goals) for task in args.tasks]
    assert [row[3] for row in rows] == pytest.approx(list(rates), abs=1e-4)
    assert [row[4] for row in rows] == pytest.approx(list(returns), abs=1e-3)
    assert all(type(x) is float for row in rows for x in row[3:])  # as CSV and checkpoint need

    logged = scalars(tmp_path)
    for worst in (1, 3, 5, 10):
        [(step, value)] = logged.pop(f"eval/success_worst_{worst}")
        assert step == 1_000
        assert value == pytest.approx(np.sort(rates)[:worst].mean(), abs=1e-4)
    assert logged.keys() == {f"eval_success/{name}" for name in (*args.tasks, "mean")}


@every_script
@pytest.mark.parametrize("eval_interval", [300, 1_000, 2_500, 4_000, 100_000])
@pytest.mark.parametrize("num_collects", [9, 10])
def test_evaluation_is_due_at_the_start_after_every_interval_and_at_the_end(
    module, eval_interval, num_collects
):
    args = module.Args(
        tasks=("reach-v3",),
        num_steps=1_000,
        total_timesteps=1_000 * num_collects + 999,  # in whole collects
        eval_interval=eval_interval,
    )
    multiples = range(0, 1_000 * num_collects + 1, eval_interval)
    expected = {math.ceil(step / 1_000) for step in multiples} | {num_collects}
    due = {c for c in range(num_collects + 1) if module.evaluation_due(c, args)}
    assert due == expected


# --- Rollouts


@every_script
def test_rollouts_goals_and_noise(module, monkeypatch):
    """Goals at random, noise of each task's own standard deviation, episodes in order."""
    args = module.Args(tasks=TASKS, num_steps=4_000)
    agent = module.Agent(3, (8,))
    agent.log_std.data = torch.linspace(-2, 1, 12).view(3, 4)
    calls = []

    def play(with_agent, goals, noise):
        assert with_agent is agent
        calls.append((goals, noise))
        return fabricated_episodes(module, 3, np.random.default_rng(len(calls)))

    envs = fabricated_envs(module, monkeypatch, play)
    rollout, metrics = module.collect_episodes(envs, agent, np.random.default_rng(0), args)
    assert len(calls) == 8
    assert rollout.obs.shape == (3, 8, 501, 42)
    assert rollout.actions.shape == (3, 8, 500, 4)
    assert rollout.rewards.shape == (3, 8, 500)
    assert rollout.success.shape == (3, 8)
    for e in range(8):
        episodes = fabricated_episodes(module, 3, np.random.default_rng(e + 1))
        for whole, x in zip(rollout, episodes):
            np.testing.assert_array_equal(whole[:, e], x)
    np.testing.assert_allclose(metrics["train_success"], rollout.success.mean(axis=1))
    returns = [[rewards.sum() for rewards in task] for task in rollout.rewards]
    np.testing.assert_allclose(metrics["train_return"], np.mean(returns, axis=1), rtol=1e-4)
    assert metrics["replaced_episodes"] == 0

    goals = np.array([goals for goals, _ in calls])
    assert goals.min() >= 0
    assert goals.max() < 50
    assert len(np.unique(goals)) > 12  # of 24
    noise = np.array([noise for _, noise in calls])  # [8, K, 500, 4]
    assert noise.dtype == np.float32
    z = noise / agent.log_std.detach().exp().numpy()[:, None]
    assert np.abs(z.std(axis=(0, 2)) - 1).max() < 0.06  # four standard errors
    assert np.abs(z.mean(axis=(0, 2))).max() < 0.07
    assert len(np.unique(z)) > 0.99 * z.size  # none is used twice

    module.collect_episodes(envs, agent, np.random.default_rng(0), args)
    for (goals, noise), (goals_again, noise_again) in zip(calls[:8], calls[8:], strict=True):
        np.testing.assert_array_equal(goals, goals_again)  # the generator decides, nothing else
        np.testing.assert_array_equal(noise, noise_again)


@every_script
def test_episodes_that_are_not_finite_are_replaced(module, monkeypatch, capsys):
    args = module.Args(tasks=TASKS, num_steps=2_000)
    agent = module.Agent(3, (8,))
    spoiled = {(0, 0), (0, 1), (1, 3)}  # task, episode
    clean = [fabricated_episodes(module, 3, np.random.default_rng(e)) for e in range(4)]
    played = [module.Episodes(*(x.copy() for x in episodes)) for episodes in clean]
    played[0].obs[0, 500, 38] = np.nan  # the very last observation
    played[1].rewards[0, 7] = -np.inf
    played[3].obs[1, 3, 0] = np.inf
    played[3].rewards[1, 499] = np.nan
    coming = iter(played)
    envs = fabricated_envs(module, monkeypatch, lambda *_: next(coming))
    rollout, metrics = module.collect_episodes(envs, agent, np.random.default_rng(0), args)

    sources = np.tile(np.arange(4), (3, 1))  # [K, E]: which of a task's episodes is there
    for k, e in np.ndindex(3, 4):
        if (k, e) in spoiled:
            same = [(rollout.obs[k, e] == clean[i].obs[k]).all() for i in range(4)]
            sources[k, e] = same.index(True)
            assert (k, sources[k, e]) not in spoiled
        for whole, *episodes in zip(rollout, *clean):
            np.testing.assert_array_equal(whole[k, e], episodes[sources[k, e]][k])
    assert metrics["replaced_episodes"] == 3
    assert np.isfinite(metrics["train_return"]).all()
    np.testing.assert_allclose(metrics["train_success"], rollout.success.mean(axis=1))
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"{module.SCRIPT}: ") for line in lines] == [True] * 3
    assert [sum(task in line for line in lines) for task in TASKS] == [2, 1, 0]


# --- Logging


@every_script
def test_names_under_which_numbers_are_logged(module, writer, tmp_path):
    metrics = {
        "number": 0.25,
        "flag": np.bool_(True),
        "tensor": torch.tensor(3.0),
        "of_tasks": np.array([1.0, 2.0, 6.0]),
        "tensor_of_tasks": torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64),
    }
    module.log(writer, TASKS, 500, metrics)
    writer.flush()
    expected = {"number": 0.25, "flag": 1.0, "tensor": 3.0}
    expected |= {"of_tasks/mean": 3.0, "tensor_of_tasks/mean": 0.5}
    expected |= dict(zip([f"of_tasks/{task}" for task in TASKS], (1.0, 2.0, 6.0)))
    expected |= dict(zip([f"tensor_of_tasks/{task}" for task in TASKS], (0.0, 1.0, 0.5)))
    assert scalars(tmp_path) == {tag: [(500, value)] for tag, value in expected.items()}
