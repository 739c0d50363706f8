"""enjoy.py on real Meta-World, against the scripts' own episodes and checkpoints."""

import ctypes.util
import importlib
import os
import subprocess
import sys
from pathlib import Path

import enjoy
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPTS = [p.stem for p in (*ROOT.glob("*_mt*.py"), *sorted(ROOT.glob("ablations/*.py")))]
TASKS = ["drawer-close-v3", "button-press-v3"]
FLAGS = {"tasks": TASKS, "seed": 1, "num_steps": 500, "reward_version": "v2"}
needs_egl = pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="needs libEGL")


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs enjoy.py in this process. Returns its table {task: numbers} and its first line."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["enjoy.py", *map(str, words)])
        enjoy.main()
        first, _, *lines = capsys.readouterr().out.splitlines()
        return {name: numbers for name, *numbers in map(str.split, lines)}, first

    return call


@pytest.fixture(scope="module")
def pushing(tmp_path_factory):
    """A directory with an actor.pt that pushes forward, harder in task 0; it solves both tasks."""
    path = tmp_path_factory.mktemp("enjoy") / "pushing"
    path.mkdir()
    agent = importlib.import_module("toppo_mt50").Agent(2, (16,))
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        agent.actor[0].weight[0, 39] = 1  # the one-hot's first number
        agent.actor[-1].weight[1, 0] = 0.3
        agent.actor[-1].bias.copy_(torch.tensor([0.0, 0.5, -0.2, 0.0]))
    saved = {"script": "x", "args": FLAGS, "actor": agent.actor.state_dict()}
    torch.save({**saved, "log_std": agent.log_std}, path / "actor.pt")
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_reads_every_scripts_checkpoint(name, tmp_path):
    agent = importlib.import_module(name).Agent(2, (8, 7))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.normal_()  # biases and LayerNorm's weights are all alike at first
    checkpoint = {"script": name, "args": FLAGS, "collects": 3, "agent": agent.state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    actor, flags, title = enjoy.load_policy(tmp_path)
    obs = torch.randn(20, 41)
    torch.testing.assert_close(actor(obs), agent.actor(obs), rtol=0, atol=0)
    assert flags == FLAGS and title == f"{name} after 3,000 steps"


def test_an_episode_is_the_scripts_own(pushing, call):
    """Also where it ends at its success while the other task's goes on."""
    rows, first = call(pushing, "--episodes", 2)
    assert first == "x, goals of seed 1"
    script = importlib.import_module("toppo_mt50")
    args = script.Args(tasks=tuple(TASKS), hidden_sizes=(16,), num_workers=1)
    actor = enjoy.load_policy(pushing)[0]
    workers = script.start_workers(args)
    rounds = [script.play(workers, actor, np.full(2, goal)) for goal in (0, 1)]
    for i, name in enumerate(TASKS):
        expected = np.mean([episodes["rewards"][i].sum() for episodes in rounds])
        assert all(episodes["success"][i] for episodes in rounds)
        assert rows[name] == ["1.00", "2", f"{expected:.1f}"]
    assert rows["mean"][:2] == ["1.000", "4"]


def test_some_tasks_and_other_goals(pushing, call):
    both, _ = call(pushing, "--episodes", 1)
    rows, _ = call(pushing, "--tasks", TASKS[1], "--episodes", 1)
    others, first = call(pushing, "--tasks", TASKS[1], "--episodes", 1, "--seed", 7)
    assert list(rows) == [TASKS[1], "mean"] and rows[TASKS[1]] == both[TASKS[1]] != others[TASKS[1]]
    assert first == "x, goals of seed 7"


# --- The video


# Frames of steps 0, 4, ..., 100 and 101; to step 12; all
@pytest.mark.parametrize("solved_at, frames", [((10, 101), 27), ((10, 999), 4), ((999, 999), 126)])
def test_film_ends_a_second_after_the_last_success(monkeypatch, solved_at, frames):
    monkeypatch.setattr(enjoy, "render", lambda env: np.zeros((64, 64, 3), np.uint8))
    steps = range(min(500, max(solved_at)) + 1)
    episode = ((np.array([t >= s for s in solved_at]), None) for t in steps)
    assert len(enjoy.film(episode, [None] * 2, TASKS, [])) == frames + 20


@needs_egl
def test_gif_is_a_grid_that_moves_and_turns_green(pushing, tmp_path):
    path = tmp_path / "policy.gif"
    command = [sys.executable, ROOT / "enjoy.py", pushing, "--episodes", "1", "--size", "64"]
    env = os.environ | {"DISPLAY": ""}
    subprocess.run([*command, "--video", path], check=True, timeout=300, env=env)
    with Image.open(path) as gif:
        assert gif.size == (2 * 64, 64) and gif.info["loop"] == 0
        first = np.asarray(gif.convert("RGB"), int)
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("RGB"), int)
    for picture in (slice(0, 64), slice(64, 128)):
        moved = np.abs(first - last)[8:56, picture][:, 8:56]
        assert moved.max() > 50
        edges = last[1, picture], last[-2, picture]
        assert (np.abs(np.stack(edges) - (48, 192, 80)) < 16).all()  # GREEN
        assert not (np.abs(first[1, picture] - (48, 192, 80)) < 16).all()


PICTURES = """
import os
os.environ["MUJOCO_GL"] = "egl"
import enjoy, numpy as np

names = ["door-open-v3", "reach-v3"]
args = enjoy.Args(run="x", video="x.gif", size=64)
def pictures(names):
    envs, goals = enjoy.make_envs(args, names, 1, "v2")
    for env, (goal, *_) in zip(envs, goals):
        env.set_task(goal)
        env.reset()
    for _ in range(2):  # the first time each makes its own OpenGL context
        found = [enjoy.render(env) for env in envs]
    return found

# One environment's OpenGL context must not draw another one's scene
together = pictures(names)
for name, picture in zip(names, together):
    np.testing.assert_array_equal(pictures([name])[0], picture)
assert (together[0] != together[1]).any()

# The sky is above, and the robot stands on the left: neither upside down nor in a mirror
sky, left, right = together[1][0], together[1][:, :32], together[1][:, 32:]
assert np.ptp(sky, axis=0).max() < 10, "no plain sky"
red = lambda part: ((part[..., 0] > 90) & (part[..., 1] < 50)).sum()
assert red(left) > 3 * red(right) > 0
"""


@needs_egl
def test_pictures_are_upright_and_of_their_own_environment():
    subprocess.run([sys.executable, "-c", PICTURES], check=True, cwd=ROOT, timeout=300)


# --- Errors


@pytest.mark.parametrize(
    "words, message",
    [
        ("--tasks sweep-v3", "some of the run's, each once: drawer-close-v3 button-press-v3"),
        ("--episodes 51", "episodes: expected 1 to 50, a task's goals"),
        ("--seed -1", "seed: expected 0 to 2^32 - 1"),
        ("--video policy.avi", "video: expected a name in .gif or .mp4"),
    ],
)
def test_wrong_flags_are_said(pushing, call, capsys, words, message):
    with pytest.raises(SystemExit) as end:
        call(pushing, *words.split())
    said = f"{end.value} {capsys.readouterr().err}".replace("│", " ")
    assert message in " ".join(said.split())


def test_what_is_no_policy_is_said(pushing, call, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((pushing / "actor.pt").read_bytes()[:-1000])
    torch.save({"weights": 1}, tmp_path / "other.pt")
    for path in (tmp_path, tmp_path / "other.pt", tmp_path / "nothing"):
        with pytest.raises(SystemExit, match="is not a whole checkpoint or actor.pt"):
            call(path)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(SystemExit, match="has no checkpoint.pt and no actor.pt"):
        call(tmp_path)
