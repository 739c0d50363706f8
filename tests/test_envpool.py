"""ablations/*_envpool.py: EnvPool's Meta-World beside the official one, the rollout, bad input, a run that is killed and resumed.

Parity: both simulators start with the same goal and objects, as EnvPool's draws can be repeated from its seed, and take the same
actions. Compared over all fifty tasks: goal, observations, rewards, and how soon a scripted policy succeeds.

What differs or could not be compared:
- EnvPool's simulator state can be neither read nor set, so the start is compared through the observation alone.
- MuJoCo 3.6.0 is built into EnvPool, Meta-World is pinned to 3.3.0: things in contact move otherwise, most of all in dial-turn,
  whose scripted policy succeeds with 3.3.0 only; lever-pull's observed quaternion is another one and not compared.
- Meta-World resets twice, and the hand then meets what the first reset has placed; disassemble's nut may end up elsewhere, which
  is not compared. With MuJoCo 3.6.0 and one reset on its side too, all fifty agreed to 1e-8 over 100 steps.
- Meta-World's first observation has some positions from before the objects were placed: compared from the second step on.
- Rewards of door-lock, pick-place, push-back, soccer, sweep and sweep-into measure from where the fingers were at first. In
  Meta-World that is a view of where they are now; EnvPool holds it fixed. They differ by up to 2 of 10, and are compared with it
  held fixed on both sides.
- After a pool's first reset the goals of hammer and shelf-place are misplaced: the scripts make a new pool for each episode.
"""

import dataclasses
import importlib
import pickle
import time
from importlib.util import find_spec

import metaworld
import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT50_V3
from metaworld.policies import ENV_POLICY_MAP
from scripts import run
from test_bad_input import error_of
from test_faults import result, start, wait_for
from test_runs import SMALL

pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # a scripted policy's gains
SCRIPTS = [importlib.import_module(name) for name in ("vanilla_envpool", "toppo_envpool")]
ppo = SCRIPTS[0]
needs_envpool = pytest.mark.skipif(not find_spec("envpool"), reason="needs EnvPool: pip install -r requirements-envpool.txt")
FIRST_FINGERS = "door-lock-v3", "pick-place-v3", "push-back-v3", "soccer-v3", "sweep-v3", "sweep-into-v3"
# Random actions touch nothing in these:
FREE = """assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall coffee-button
    coffee-pull coffee-push dial-turn drawer-open faucet-open faucet-close hammer lever-pull pick-out-of-hole plate-slide
    plate-slide-side plate-slide-back plate-slide-back-side soccer window-open window-close""".split()
LOOSE = {"bin-picking-v3": 0.2, "door-close-v3": 0.05}  # a cube that tumbles at the start, a door that the hand pushes
DIFFERENT = {"lever-pull-v3": slice(7, 11), "disassemble-v3": slice(4, 11)}  # what is not compared of 18 numbers


def make_pool(name, seed):
    import envpool
    return envpool.make_gymnasium("MetaWorld/Reach-v3", task_name=name, num_envs=1, seed=seed, partially_observable=False)


def draws(seed, low, high):
    """EnvPool's: std::mt19937 gives two numbers of 32 bits for one of 53."""
    random = np.random.RandomState(seed)
    while True:
        numbers = random.randint(2**32, size=(len(low), 2), dtype=np.uint64)
        yield low + (high - low) * (numbers @ [1.0, 2.0**32]) / 2.0**64


def both(name, seed):
    """Meta-World's environment and EnvPool's pool of one, reset to the same goal, and their observations [39]."""
    pool, env = make_pool(name, seed), ALL_V3_ENVIRONMENTS[name](reward_function_version="v2")
    fingers, drawn = (env.init_left_pad.copy(), env.init_right_pad.copy()), []
    data = {"env_cls": type(env), "rand_vec": None, "partially_observable": False}
    env.set_task(metaworld.Task(env_name=name, data=pickle.dumps(data)))
    source = draws(seed, env._random_reset_space.low, env._random_reset_space.high)
    env._get_state_rand_vec = lambda: drawn.append(next(source)) or drawn[-1]
    env.reset_model()  # draws until objects and goal are far enough apart
    env._get_state_rand_vec = lambda: drawn[-1]
    obs, pool_obs = env.reset()[0], pool.reset()[0][0]
    if name in FIRST_FINGERS:
        env.init_left_pad, env.init_right_pad = fingers
    return env, pool, obs, pool_obs


def step(simulator, action):
    """A step of either. Returns the observation [39], the reward and success."""
    batch = hasattr(simulator, "async_reset")  # EnvPool
    obs, reward, _, _, info = simulator.step(action[None] if batch else action)
    return (obs[0], reward[0], bool(info["success"][0])) if batch else (obs, reward, bool(info["success"]))


@needs_envpool
@pytest.mark.parametrize("name", MT50_V3)
def test_same_goal_and_actions(name):
    env, pool, obs, pool_obs = both(name, seed=7)
    np.testing.assert_allclose(pool_obs[36:], obs[36:], atol=1e-4)
    free = name[:-3] in FREE
    atol, of_18 = 1e-4 if free else LOOSE.get(name, 0.01), np.delete(np.arange(18), DIFFERENT.get(name, slice(0)))
    for t, action in enumerate(np.random.default_rng(1).uniform(-1, 1, (40, 4)).astype(np.float32)):
        obs, reward, success = step(env, action)
        pool_obs, pool_reward, pool_success = step(pool, action)
        if t > 0:
            for i in of_18, 18 + of_18, slice(36, 39):
                np.testing.assert_allclose(pool_obs[i], obs[i], atol=atol, err_msg=f"step {t}")
            if name != "disassemble-v3":
                assert pool_reward == pytest.approx(reward, abs=1e-5 if free else 0.05), f"step {t}"
        assert pool_success == success


@needs_envpool
@pytest.mark.parametrize("name", MT50_V3)
def test_a_scripted_policy_succeeds_in_both(name):
    """It acts on each simulator's own observations, the goal included. From other seeds, contacts that turn out otherwise decide
    in some of bin-picking, disassemble, door-lock, peg-insert-side, peg-unplug-side and shelf-place."""
    env, pool, *first_obs = both(name, seed=4)
    policy, needed = ENV_POLICY_MAP[name](), []
    for simulator, obs in zip((env, pool), first_obs):
        for t in range(500):
            obs, _, success = step(simulator, policy.get_action(obs).clip(-1, 1).astype(np.float32))
            if success:
                break
        needed.append(t)
    if name == "dial-turn-v3":
        assert needed[0] < 100 and needed[1] == 499  # MuJoCo 3.3.0 and 3.6.0
    else:
        assert max(needed) < 499 and abs(needed[0] - needed[1]) <= 30, needed


@needs_envpool
@pytest.mark.parametrize("num_envs_per_task", [1, 2])
def test_episodes_are_envpools_own(num_envs_per_task):
    """Each whole, up to the observation after step 500, which is not that of the reset after it, and with its goal in place."""
    names, rng = ["hammer-v3", "push-v3", "shelf-place-v3"], np.random.default_rng(0)
    torch.manual_seed(0)
    agent, seeds = ppo.Agent(3, (16,)), rng.integers(2**31, size=(3, 4))
    noise = rng.standard_normal((3, 4, 500, 4), np.float32)
    args = ppo.Args(seed=5, num_workers=2, hidden_sizes=(16,), num_envs_per_task=num_envs_per_task)
    envs, one_worker = ppo.TaskEnvs(names, args), ppo.TaskEnvs(names, dataclasses.replace(args, num_workers=1))
    obs, actions, rewards, success = envs.play(agent, seeds, noise)
    assert obs.shape == (3, 4, 501, 39) and actions.shape == (3, 4, 500, 4)
    assert rewards.shape == (3, 4, 500) and success.shape == (3, 4)
    assert {x.dtype for x in (obs, actions, rewards)} == {np.dtype(np.float32)}
    for again in envs.play(agent, seeds, noise), one_worker.play(agent, seeds, noise):
        for a, b in zip(again, (obs, actions, rewards, success)):
            np.testing.assert_array_equal(a, b)
    assert (envs.play(agent, seeds + 1, noise)[0] != obs).any()
    assert np.abs(actions).max() > 1  # stored as drawn; only the environment sees them clipped
    for k, name in enumerate(names):
        with torch.no_grad():
            means = agent.actor(torch.cat([torch.from_numpy(obs[k, :, :-1]), torch.eye(3)[k].expand(4, 500, 3)], dim=-1))
        np.testing.assert_allclose(actions[k], means.numpy() + noise[k], atol=1e-6)
        goals = ALL_V3_ENVIRONMENTS[name]().goal_space
        for e in range(4):
            if e % (4 // num_envs_per_task) == 0 or name != "push-v3":
                pool = make_pool(name, int(seeds[k, e]))
            np.testing.assert_array_equal(obs[k, e, 0], pool.reset()[0][0].astype(np.float32))
            steps = [step(pool, a) for a in actions[k, e].clip(-1, 1)]
            np.testing.assert_array_equal(obs[k, e, 1:], np.array([s[0] for s in steps], np.float32))
            np.testing.assert_array_equal(rewards[k, e], [s[1] for s in steps])
            assert success[k, e] == any(s[2] for s in steps)
            assert (goals.low - 0.02 <= obs[k, e, -1, 36:]).all() and (obs[k, e, -1, 36:] <= goals.high + 0.02).all()
        np.testing.assert_array_equal(obs[k, :, 1:, 18:36], obs[k, :, :-1, :18])  # each holds the step before it


@needs_envpool
def test_evaluation_is_on_metaworlds_goals():
    envs = ppo.TaskEnvs(["reach-v3"], ppo.Args(seed=2, hidden_sizes=(16,)))
    obs, _, _, _ = envs.play(ppo.Agent(1, (16,)), np.arange(3)[None])
    mt1, starts = metaworld.MT1("reach-v3", seed=2), []
    env = mt1.train_classes["reach-v3"](reward_function_version="v2")
    for task in mt1.train_tasks[:3]:
        env.set_task(task)
        starts.append(env.reset()[0].astype(np.float32))
    np.testing.assert_array_equal(obs[0, :, 0], starts)


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_envpool(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    message = "EnvPool is not installed, expected envpool 1.2.5: pip install -r requirements-envpool.txt"
    assert error_of(script, [], monkeypatch, capsys) == f"{script.SCRIPT}: error: {message}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_v1_rewards(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: True)
    message = "--reward-version v1: expected v2, the only rewards that EnvPool has"
    assert error_of(script, ["--reward-version", "v1"], monkeypatch, capsys) == f"{script.SCRIPT}: error: {message}\n"


@needs_envpool
def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path):
    """With several episodes to a pool; on the same machine, with the same --torch-threads and --num-envs-per-task."""
    path = "ablations/toppo_envpool.py"
    flags = [*SMALL, "--num-steps", 1000, "--eval-interval", 6000, "--total-timesteps", 12_000]
    straight = run(path, *flags, "--run-dir", tmp_path / "a")
    assert straight.returncode == 0, straight.stderr
    process = start(*flags, "--run-dir", tmp_path / "b", script=path)
    wait_for(process, "collect 2/")
    time.sleep(0.5)  # into the third collect
    process.kill()  # kill -9
    process.communicate()
    resumed = run(path, "--resume", tmp_path / "b")
    assert resumed.returncode == 0, resumed.stderr
    assert result(tmp_path / "b") == result(tmp_path / "a")
