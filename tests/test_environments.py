"""Real Meta-World: the 50 goals, what a step returns, episode ends, evaluation."""

import metaworld
import numpy as np
import pytest
import torch
import vanilla_mtppo as ppo

NAMES = ["drawer-close-v3", "reach-v3", "push-v3"]


def make_envs(names, **flags):
    return ppo.TaskEnvs(names, ppo.Args(**{"seed": 5, "num_workers": 2, "hidden_sizes": (16,), **flags}))


def make_agent(num_tasks, constant_action=None):
    """An untrained agent, or one whose mean is always the same."""
    torch.manual_seed(0)
    agent = ppo.Agent(num_tasks, (16,))
    if constant_action is not None:
        with torch.no_grad():
            agent.actor[-1].weight.zero_()
            agent.actor[-1].bias.copy_(torch.tensor(constant_action))
    return agent


def reference_env(name, reward_version, goal, seed=5):
    """The same environment through Meta-World's own interface."""
    mt1 = metaworld.MT1(name, seed=seed)
    env = mt1.train_classes[name](reward_function_version=reward_version)
    env.set_task(mt1.train_tasks[goal])
    return env


@pytest.mark.parametrize("reward_version", ["v1", "v2"])
@pytest.mark.parametrize("num_envs_per_task", [1, 2])
def test_episodes_are_metaworlds_own(reward_version, num_envs_per_task):
    """Also the episode after another one: nothing of that may be left, or --resume would not be exact."""
    envs, agent = make_envs(NAMES, reward_version=reward_version, num_envs_per_task=num_envs_per_task), make_agent(3)
    goals = np.array([[9, 3], [9, 41], [9, 0]])
    noise = np.random.default_rng(0).normal(size=(3, 2, 500, 4)).astype(np.float32)
    obs, actions, rewards, success = envs.play(agent, goals, noise)
    assert obs.shape == (3, 2, 501, 39) and actions.shape == (3, 2, 500, 4)
    assert rewards.shape == (3, 2, 500) and success.shape == (3, 2)
    assert np.abs(actions).max() > 1  # stored as drawn; only the environment sees them clipped
    for again, first in zip(envs.play(agent, goals, noise), (obs, actions, rewards, success)):
        np.testing.assert_array_equal(again, first)
    for k, name in enumerate(NAMES):
        with torch.no_grad():
            means = agent.actor(torch.cat([torch.from_numpy(obs[k, :, :-1]), torch.eye(3)[k].expand(2, 500, 3)], dim=-1))
        np.testing.assert_allclose(actions[k], means.numpy() + noise[k], atol=1e-6)
        for e in range(2):
            env = reference_env(name, reward_version, goals[k, e])
            np.testing.assert_array_equal(obs[k, e, 0], env.reset()[0].astype(np.float32))
            steps = [env.step(a) for a in actions[k, e].clip(-1, 1)]
            np.testing.assert_array_equal(obs[k, e, 1:], np.array([step[0] for step in steps], np.float32))
            np.testing.assert_array_equal(rewards[k, e], np.array([step[1] for step in steps], np.float32))
            assert success[k, e] == any(step[4]["success"] for step in steps)


def test_reward_versions_differ():
    goals, noise = np.zeros((1, 1), int), np.full((1, 1, 500, 4), 0.3, np.float32)
    rewards = [make_envs(["push-v3"], reward_version=v).play(make_agent(1), goals, noise)[2] for v in ("v1", "v2")]
    assert not np.allclose(*rewards)


def test_episodes_end_by_truncation_after_500_steps():
    env = reference_env("reach-v3", "v2", 0)
    env.reset()
    ends = [env.step(np.zeros(4))[2:4] for _ in range(ppo.EPISODE_STEPS)]
    assert ends == [(False, False)] * 499 + [(False, True)]


def evaluate(agent, envs, num_tasks, num_goals):
    """As the scripts do."""
    obs, _, rewards, success = envs.play(agent, np.tile(np.arange(num_goals), (num_tasks, 1)))
    return obs, rewards.sum(-1), success


def test_evaluation_visits_each_of_the_50_goals_once():
    """With three environments, which play 17 episodes each, one more than asked for."""
    obs, returns, success = evaluate(make_agent(1), make_envs(["reach-v3"], num_envs_per_task=3, seed=2), 1, 50)
    assert success.shape == returns.shape == (1, 50)
    assert (returns > 0).all()
    starts, expected, env = obs[0, :, 0], [], reference_env("reach-v3", "v2", 0, seed=2)
    for task in metaworld.MT1("reach-v3", seed=2).train_tasks:
        env.set_task(task)
        expected.append(env.reset()[0].astype(np.float32))
    np.testing.assert_array_equal(starts, expected)
    assert len(np.unique(starts[:, 36:39], axis=0)) == 50


def test_evaluation_stops_an_episode_at_its_first_success():
    """A hand that goes back, with fingers that open, closes the drawer and never reaches reach's goal."""
    action, names = (0.0, 1.0, -1.0, 0.0), ["drawer-close-v3", "reach-v3"]
    _, returns, success = evaluate(make_agent(2, action), make_envs(names), 2, 3)
    assert success.tolist() == [[True] * 3, [False] * 3]
    for k, name in enumerate(names):
        for goal in range(3):
            env, expected = reference_env(name, "v2", goal), 0.0
            env.reset()
            for _ in range(500):
                _, reward, _, _, info = env.step(np.array(action, np.float32))
                expected += reward
                if info["success"]:
                    break
            assert returns[k, goal] == pytest.approx(expected, rel=1e-5)
