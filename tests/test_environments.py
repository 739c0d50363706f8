"""Real Meta-World: the 50 goals, what a step returns, episode ends, evaluation."""

import metaworld
import numpy as np
import pytest
import torch
import vanilla_mtppo as ppo

NAMES = ["drawer-close-v3", "reach-v3", "push-v3"]


@pytest.fixture(scope="module", params=["v1", "v2"])
def envs(request):
    envs = ppo.TaskEnvs(NAMES, request.param, seed=5, num_workers=2)
    envs.reward_version = request.param
    return envs


def reference_env(name, reward_version, goal, seed=5):
    """The same environment through Meta-World's own interface."""
    mt1 = metaworld.MT1(name, seed=seed)
    env = mt1.train_classes[name](reward_function_version=reward_version)
    env.set_task(mt1.train_tasks[goal])
    return env


def test_steps_are_metaworlds_own(envs):
    """Also after another episode: nothing of it may be left, or --resume would not be exact."""
    everyone, actions = np.ones(3, bool), np.random.default_rng(0).uniform(-1, 1, (40, 3, 4)).astype(np.float32)
    envs.call("reset", np.array([9, 9, 9]), everyone)
    for a in actions[::-1]:
        envs.call("step", a, everyone)
    goals = np.array([3, 41, 0])
    obs = [envs.call("reset", goals, everyone)[0]]
    steps = [envs.call("step", a, everyone) for a in actions]
    for k, name in enumerate(NAMES):
        env = reference_env(name, envs.reward_version, goals[k])
        np.testing.assert_array_equal(obs[0][k], env.reset()[0].astype(np.float32))
        for a, (step_obs, rewards, success) in zip(actions, steps):
            expected_obs, reward, terminated, truncated, info = env.step(a[k])
            np.testing.assert_array_equal(step_obs[k], expected_obs.astype(np.float32))
            assert rewards[k] == reward
            assert success[k] == bool(info["success"])
            assert not terminated and not truncated


def test_reward_versions_differ():
    rewards = {}
    for version in "v1", "v2":
        worker = ppo.TaskEnvs(["push-v3"], version, seed=5, num_workers=1)
        worker.call("reset", np.array([0]), np.ones(1, bool))
        rewards[version] = [worker.call("step", np.full((1, 4), 0.3), np.ones(1, bool))[1][0] for _ in range(5)]
    assert not np.allclose(rewards["v1"], rewards["v2"])


def test_episodes_end_by_truncation_after_500_steps():
    env = reference_env("reach-v3", "v2", 0)
    env.reset()
    ends = [env.step(np.zeros(4))[2:4] for _ in range(ppo.EPISODE_STEPS)]
    assert ends == [(False, False)] * 499 + [(False, True)]


def test_inactive_tasks_rest(envs):
    everyone = np.ones(3, bool)
    envs.call("reset", np.array([1, 1, 1]), everyone)
    first = envs.call("step", np.full((3, 4), 0.5), everyone)[0]
    second = envs.call("step", np.full((3, 4), 0.5), np.array([True, False, True]))[0]
    assert (first[1] == second[1]).all()
    assert (first[[0, 2]] != second[[0, 2]]).any(1).all()


def test_rollout(envs, monkeypatch):
    """Observations carry the one-hot and the next episode's start; a (seed, collect) generator makes it repeatable."""
    monkeypatch.setattr(ppo, "EPISODE_STEPS", 12)
    torch.manual_seed(0)
    agent = ppo.Agent(3, (16,))
    collects = [ppo.rollout(agent, envs, 24, np.random.default_rng([1, c]), "cpu") for c in (0, 0, 1)]
    for a, b in zip(collects[0], collects[1]):
        np.testing.assert_array_equal(a, b)
    assert (collects[0][1] != collects[2][1]).any()
    obs, actions, rewards, success = collects[0]
    assert obs.shape == (3, 2, 13, 42) and actions.shape == (3, 2, 12, 4)
    assert rewards.shape == (3, 2, 12) and success.shape == (3, 2)
    for k in range(3):
        assert (obs[k, ..., 39:] == np.eye(3)[k]).all()
    np.testing.assert_array_equal(obs[:, :, 1:, 18:36], obs[:, :, :-1, :18])  # each holds the step before it
    assert np.abs(actions).max() > 1  # stored as drawn; only the environment sees them clipped


def test_evaluation_visits_each_of_the_50_goals_once(monkeypatch):
    monkeypatch.setattr(ppo, "EPISODE_STEPS", 4)
    envs, starts = ppo.TaskEnvs(["reach-v3"], "v2", seed=2, num_workers=1), []
    call = envs.call

    def spy(command, values, active):
        result = call(command, values, active)
        if command == "reset":
            starts.append(result[0][0])
        return result

    envs.call = spy
    success, returns = ppo.evaluate(ppo.Agent(1, (8,)), envs, 50, "cpu")
    assert success.shape == returns.shape == (50, 1)
    assert (returns > 0).all()
    expected, env = [], reference_env("reach-v3", "v2", 0, seed=2)
    for task in metaworld.MT1("reach-v3", seed=2).train_tasks:
        env.set_task(task)
        expected.append(env.reset()[0].astype(np.float32))
    visited, goals = (np.unique(np.array(obs)[:, 36:39], axis=0) for obs in (starts, expected))
    assert len(starts) == len(goals) == 50
    np.testing.assert_array_equal(visited, goals)


def test_evaluation_stops_an_episode_at_its_first_success(monkeypatch):
    class OneStepTasks:  # task 0 succeeds at its third step, task 1 never; each step is worth 1
        num_tasks, steps = 2, 0

        def call(self, command, values, active):
            self.steps = 0 if command == "reset" else self.steps + 1
            if command == "step":
                self.active.append(active.copy())
            return np.zeros((2, 39), np.float32), np.ones(2), np.array([self.steps == 3, False])

        active = []

    monkeypatch.setattr(ppo, "EPISODE_STEPS", 6)
    envs = OneStepTasks()
    success, returns = ppo.evaluate(ppo.Agent(2, (8,)), envs, 1, "cpu")
    assert success.tolist() == [[True, False]]
    assert returns.tolist() == [[3.0, 6.0]]
    assert [a.tolist() for a in envs.active] == [[True, True]] * 3 + [[False, True]] * 3
