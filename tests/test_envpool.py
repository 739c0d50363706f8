"""EnvPool's Meta-World beside the official one, and the scripts that train on it.

Parity: both simulators start with the same goal and objects, as EnvPool's draws can be repeated
from its seed, and take the same actions. Compared over all fifty tasks: goal, observations,
rewards, and how soon a scripted policy succeeds.

What differs or could not be compared:
- EnvPool's simulator state can be neither read nor set: the start is compared by the observation.
- EnvPool has MuJoCo 3.6.0 built in, Meta-World is pinned to 3.3.0: things in contact move
  otherwise, most of all in dial-turn, whose scripted policy succeeds with 3.3.0 only;
  lever-pull's observed quaternion is another one and not compared.
- Meta-World resets twice, and the hand then meets what the first reset has placed;
  disassemble's nut may end up elsewhere, which is not compared. With MuJoCo 3.6.0 and one reset
  on its side too, all fifty agreed to 1e-8 over 100 steps.
- Meta-World's first observation has some positions from before the objects were placed: compared
  from the second step on.
- Rewards of door-lock, pick-place, push-back, soccer, sweep and sweep-into measure from where the
  fingers were at first. In Meta-World that is a view of where they are now; EnvPool holds it
  fixed. They differ by up to 2 of 10, and are compared with it held fixed on both sides.
- From a pool's second reset on the goals of hammer and shelf-place are misplaced: the scripts
  make a new pool for each of their episodes.
"""

import importlib
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec

import metaworld
import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT50_V3
from metaworld.policies import ENV_POLICY_MAP
from scripts import ROOT, run, scalars

pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # a scripted policy's gains
SCRIPTS = [importlib.import_module(name) for name in ("vanilla_envpool", "toppo_envpool")]
ppo = SCRIPTS[0]
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.SCRIPT)
needs_envpool = pytest.mark.skipif(
    not find_spec("envpool"), reason="needs EnvPool: pip install -r requirements-envpool.txt"
)

FIRST_FINGERS = "door-lock pick-place push-back soccer sweep sweep-into".split()
# Random actions touch nothing in these:
FREE = """assembly basketball button-press-topdown button-press-topdown-wall button-press
    button-press-wall coffee-button coffee-pull coffee-push dial-turn drawer-open faucet-open
    faucet-close hammer lever-pull pick-out-of-hole plate-slide plate-slide-side plate-slide-back
    plate-slide-back-side soccer window-open window-close""".split()
# A cube that tumbles at the start, and a door that the hand pushes:
LOOSE = {"bin-picking": 0.2, "door-close": 0.05}
# What is not compared of the 18 numbers of now:
DIFFERENT = {"lever-pull": slice(7, 11), "disassemble": slice(4, 11)}


# --- Parity


def pool_draws(seed, space):
    """What a pool draws: std::mt19937 gives two numbers of 32 bits for one of 53."""
    random = np.random.RandomState(seed)
    while True:
        numbers = random.randint(2**32, size=(len(space.low), 2), dtype=np.uint64)
        yield space.low + (space.high - space.low) * (numbers @ [1.0, 2.0**32]) / 2.0**64


class MetaWorld:
    """Meta-World's environment, with the goals and objects of a pool that has the same seed."""

    def __init__(self, task):
        self.task = task
        self.env = ALL_V3_ENVIRONMENTS[f"{task}-v3"](reward_function_version="v2")
        self.first_fingers = (self.env.init_left_pad.copy(), self.env.init_right_pad.copy())
        data = {"env_cls": type(self.env), "rand_vec": None, "partially_observable": False}
        self.env.set_task(metaworld.Task(env_name=f"{task}-v3", data=pickle.dumps(data)))

    def seed(self, seed):
        self.draws = pool_draws(seed, self.env._random_reset_space)

    def draw(self):
        self.drawn = next(self.draws)
        return self.drawn

    def reset(self):
        self.env._get_state_rand_vec = self.draw
        self.env.reset_model()  # draws until objects and goal are far enough apart
        self.env._get_state_rand_vec = lambda: self.drawn
        obs, _ = self.env.reset()
        if self.task in FIRST_FINGERS:
            self.env.init_left_pad, self.env.init_right_pad = self.first_fingers
        return obs

    def step(self, action):
        obs, reward, _, _, info = self.env.step(action)
        return obs, reward, bool(info["success"])


class Pool:
    """An EnvPool pool as if it were its one environment."""

    def __init__(self, task, seed):
        self.pool = ppo.make_pool(f"{task}-v3", seed)

    def reset(self):
        obs, _ = self.pool.reset()
        return obs[0]

    def step(self, action):
        obs, reward, _, _, info = self.pool.step(action[None])
        return obs[0], reward[0], bool(info["success"][0])


@pytest.fixture(scope="module", params=[name.removesuffix("-v3") for name in MT50_V3])
def metaworld_env(request):
    return MetaWorld(request.param)


@needs_envpool
def test_same_goal_and_actions(metaworld_env):
    env = metaworld_env
    env.seed(7)
    pool = Pool(env.task, 7)
    np.testing.assert_allclose(pool.reset()[36:], env.reset()[36:], atol=1e-4)

    compared = np.delete(np.arange(18), DIFFERENT.get(env.task, slice(0)))
    compared = [*compared, *(18 + compared), 36, 37, 38]
    atol = 1e-4 if env.task in FREE else LOOSE.get(env.task, 0.01)
    reward_atol = 1e-5 if env.task in FREE else 0.05
    actions = np.random.default_rng(1).uniform(-1, 1, (40, 4)).astype(np.float32)
    for t, action in enumerate(actions):
        obs, reward, success = env.step(action)
        pool_obs, pool_reward, pool_success = pool.step(action)
        assert pool_success == success, t
        if t > 0:
            np.testing.assert_allclose(pool_obs[compared], obs[compared], atol=atol, err_msg=t)
        if t > 0 and env.task != "disassemble":
            assert pool_reward == pytest.approx(reward, abs=reward_atol), t

    # The next goal too, but for the two tasks that get a new pool for each episode
    same_goal = np.allclose(pool.reset()[36:], env.reset()[36:], atol=1e-4)
    assert same_goal == (env.task not in ("hammer", "shelf-place"))


def steps_to_success(policy, simulator):
    obs = simulator.reset()
    for t in range(500):
        action = policy.get_action(obs).clip(-1, 1).astype(np.float32)
        obs, _, success = simulator.step(action)
        if success:
            break
    return t


@needs_envpool
def test_a_scripted_policy_succeeds_in_both(metaworld_env):
    """It acts on each simulator's own observations, the goal included.

    From other seeds, contacts that turn out otherwise decide in some of bin-picking, disassemble,
    door-lock, peg-insert-side, peg-unplug-side and shelf-place.
    """
    env = metaworld_env
    env.seed(4)
    policy = ENV_POLICY_MAP[f"{env.task}-v3"]()
    needed = steps_to_success(policy, env)
    needed_in_pool = steps_to_success(policy, Pool(env.task, 4))
    if env.task == "dial-turn":
        assert needed < 100 and needed_in_pool == 499  # MuJoCo 3.3.0 and 3.6.0
    else:
        assert max(needed, needed_in_pool) < 499
        assert abs(needed - needed_in_pool) <= 30


# --- The scripts

TASKS = ("hammer-v3", "reach-v3", "shelf-place-v3")


@pytest.fixture(scope="module")
def args():
    return ppo.Args(tasks=TASKS, num_steps=1000, hidden_sizes=(16,), num_workers=2, seed=2)


@pytest.fixture(scope="module")
def agent():
    """An untrained one, whose hand is drawn to the goal: success comes and goes with the noise."""
    torch.manual_seed(0)
    agent = ppo.Agent(3, (16,))
    first, _, last = agent.actor
    with torch.no_grad():
        for unit in range(6):
            axis = unit // 2
            sign = 1 - 2 * (unit % 2)
            first.weight[unit, axis] -= 10 * sign  # the hand
            first.weight[unit, 36 + axis] += 10 * sign  # the goal
            last.weight[axis, unit] += sign / 10
    return agent


@pytest.fixture(scope="module")
def envs(args):
    return ppo.Envs(args)


def collect(envs, agent, args, number):
    """The rollout of collect number, as main plays it."""
    rng = np.random.default_rng([args.seed, number])
    rollout, _ = ppo.collect_episodes(envs, agent, rng, args)
    return rollout


@needs_envpool
def test_a_collect_does_not_depend_on_those_before_it(envs, agent, args):
    """Or a continued run, whose processes are new, would not be exact."""
    first = collect(envs, agent, args, 0)
    again = collect(envs, agent, args, 0)
    for x, y in zip(first, again):
        np.testing.assert_array_equal(x, y)
    other = collect(envs, agent, args, 1)
    assert (first.obs[:, :, 0] != other.obs[:, :, 0]).any(axis=(1, 2)).all()


@needs_envpool
def test_episodes_are_envpools_own(envs, agent, args):
    """Played again one by one through EnvPool's documented interface, from the same seeds."""
    rollout = collect(envs, agent, args, 0)
    assert rollout.obs.shape == (3, 2, 501, 42)
    assert rollout.actions.shape == (3, 2, 500, 4)
    assert rollout.rewards.shape == (3, 2, 500)
    assert rollout.success.shape == (3, 2)
    assert {x.dtype for x in rollout[:3]} == {np.dtype(np.float32)}

    # The actor's mean and noise, stored as drawn; only the environment sees them clipped
    rng = np.random.default_rng([args.seed, 0])
    seeds = np.zeros((3, 2), int)
    noise = np.zeros((3, 2, 500, 4), np.float32)
    for e in range(2):
        seeds[:, e] = rng.integers(2**31, size=3)
        noise[:, e] = rng.standard_normal((3, 500, 4), np.float32)
    with torch.no_grad():
        means = agent.actor(torch.from_numpy(rollout.obs[:, :, :-1])).numpy()
    np.testing.assert_allclose(rollout.actions, means + noise, atol=1e-6)
    assert np.abs(rollout.actions).max() > 1

    brief = 0  # episodes with a success that has gone at the end
    for k, name in enumerate(TASKS):
        np.testing.assert_array_equal(rollout.obs[k, :, :, 39:], np.tile(np.eye(3)[k], (2, 501, 1)))
        for e in range(2):
            if e == 0 or name != "reach-v3":
                pool = Pool(name.removesuffix("-v3"), seeds[k, e])
            obs = rollout.obs[k, e, :, :39]
            np.testing.assert_array_equal(obs[0], pool.reset().astype(np.float32))
            steps = [pool.step(action) for action in rollout.actions[k, e].clip(-1, 1)]
            # The last one too is the episode's own, not that of the reset after it
            np.testing.assert_array_equal(obs[1:], np.array([x for x, _, _ in steps], np.float32))
            rewards = np.array([reward for _, reward, _ in steps], np.float32)
            np.testing.assert_array_equal(rollout.rewards[k, e], rewards)
            success = [success for _, _, success in steps]
            assert rollout.success[k, e] == any(success)
            brief += any(success) and not success[-1]
            np.testing.assert_array_equal(obs[1:, 18:36], obs[:-1, :18])  # the step before it
        assert (rollout.obs[k, 0, 0] != rollout.obs[k, 1, 0]).any()
    assert brief > 0


@needs_envpool
def test_evaluation_is_on_metaworlds_goals(envs, agent, args):
    episodes = envs.play(agent, np.array([0, 49, 25]))
    mt1 = metaworld.MT1("reach-v3", seed=args.seed)
    env = mt1.train_classes["reach-v3"](reward_function_version="v2")
    env.set_task(mt1.train_tasks[49])
    obs, _ = env.reset()
    np.testing.assert_array_equal(episodes.obs[1, 0, :39], obs.astype(np.float32))


def error_of(script, flags, monkeypatch, capsys):
    """What parse_args prints on stderr, as one line without the box."""
    monkeypatch.setattr(sys, "argv", [script.__file__, *flags])
    with pytest.raises(SystemExit) as error:
        script.parse_args()
    assert error.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return " ".join(err.replace("│", " ").split())


@every_script
def test_without_envpool(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    message = "EnvPool: pip install -r requirements-envpool.txt first"
    assert message in error_of(script, [], monkeypatch, capsys)


@every_script
def test_v1_rewards(script, monkeypatch, capsys):
    error = error_of(script, ["--reward-version", "v1"], monkeypatch, capsys)
    assert "invalid choice 'v1' for argument '--reward-version'" in error


def learned(checkpoint):
    """All that a run has learned."""
    states = checkpoint["optimizer"]["state"].values()
    tensors = [*checkpoint["agent"].values(), *(x for state in states for x in state.values())]
    return [x.tolist() for x in tensors]


@needs_envpool
def test_a_run_that_is_killed_and_one_that_goes_on_from_its_checkpoint(tmp_path):
    """The second has the first's third collect: to continue is exact."""
    path = "ablations/toppo_envpool.py"
    flags = ["--tasks", *TASKS[:2], "--num-steps", "1000", "--total-timesteps", "8000"]
    flags += ["--update-epochs", "2", "--num-minibatches", "4", "--hidden-sizes", "16"]
    flags += ["--eval-episodes", "1", "--torch-threads", "1", "--num-workers", "1"]
    flags += ["--keep-checkpoints-every", "1", "--run-dir", str(tmp_path / "killed")]
    process = subprocess.Popen(
        [sys.executable, path, "--no-cuda", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("collect 3/4"):
            break
    process.kill()
    _, errors = process.communicate(timeout=300)  # until the worker, which has the pipes, ends
    assert process.returncode == -9, errors

    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "killed/checkpoint_00002.pt", tmp_path / "other/checkpoint.pt")
    other = run(path, "--run-dir", tmp_path / "other", "--total-timesteps", 6000)
    assert other.returncode == 0, other.stderr
    assert "collect 3/3" in other.stdout and "collect 2/3" not in other.stdout
    expected = torch.load(tmp_path / "killed/checkpoint_00003.pt", weights_only=True)
    checkpoint = torch.load(tmp_path / "other/checkpoint.pt", weights_only=True)
    assert learned(checkpoint) == learned(expected)
    logged = scalars(tmp_path / "killed")
    for tag, series in scalars(tmp_path / "other").items():
        if not tag.startswith("eval"):
            assert series == [(6000, dict(logged[tag])[6000])], tag
