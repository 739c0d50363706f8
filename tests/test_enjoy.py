"""enjoy.py on a short run, and its pictures against those of environments drawn alone."""

import csv
import ctypes.util
import os
import shutil
import subprocess
import sys

import enjoy
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import MODULES, ROOT, run

TASKS = ["reach-v3", "drawer-close-v3"]
PUSHED = ["drawer-close-v3", "button-press-v3"]
SETTINGS = ["--num-steps", 500, "--hidden-sizes", 16, 16, "--update-epochs", 2]
SETTINGS += ["--num-minibatches", 4, "--eval-episodes", 2, "--num-workers", 1]
needs_egl = pytest.mark.skipif(
    not ctypes.util.find_library("EGL"), reason="pictures without a screen need libEGL"
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Of the script with LayerNorm in the actor, whose network is least like the others'."""
    path = tmp_path_factory.mktemp("enjoy") / "run"
    flags = ["--total-timesteps", 2000, "--keep-checkpoints-every", 1, "--run-dir", path]
    flags += ["--torch-threads", 1, "--eval-interval", 2000]
    process = run("ablations/symmetric_ln_popart.py", "--tasks", *TASKS, *SETTINGS, *flags)
    assert process.returncode == 0, process.stderr
    return path


@pytest.fixture
def play(monkeypatch, capsys):
    """Runs enjoy.py in this process. Returns its table {task: numbers} and all of its output."""

    def play(*words):
        monkeypatch.setattr(sys, "argv", ["enjoy.py", *map(str, words)])
        enjoy.main()
        return table(capsys.readouterr().out)

    return play


def table(out):
    lines = [line.split() for line in out.splitlines()]
    rows = {
        words[0]: words[1:] for words in lines if words and words[0] in (*TASKS, *PUSHED, "mean")
    }
    return rows, out


def evaluated(run_dir, step):
    """{task: (success, mean return)} of evals.csv."""
    with open(run_dir / "evals.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == str(step)]
    return {row["task"]: (float(row["success_rate"]), float(row["mean_return"])) for row in rows}


def assert_same(rows, expected):
    assert list(rows) == [*TASKS, "mean"]
    for task, (success, mean_return) in expected.items():
        assert abs(float(rows[task][0]) - success) < 0.0051  # printed with two digits
        assert abs(float(rows[task][2]) - mean_return) < 0.0501
        assert int(rows[task][1]) == 2
    assert abs(float(rows["mean"][0]) - np.mean([x for x, _ in expected.values()])) < 0.0006


@pytest.mark.parametrize("file, step", [("checkpoint_00000.pt", 0), ("", 2000)])
def test_plays_what_the_script_evaluated(run_dir, play, file, step):
    rows, out = play(run_dir / file, "--episodes", 2)
    assert out.startswith(f"symmetric_ln_popart after {step:,} steps, goals of seed 1\n")
    assert_same(rows, evaluated(run_dir, step))


def test_plays_a_committed_policy(run_dir, play, tmp_path):
    """A directory with args.json and actor.pt only, as paper/compact.py writes it."""
    command = [sys.executable, "paper/compact.py", run_dir, "--out", tmp_path, "--actor"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    small = tmp_path / "small"
    small.mkdir()
    for name in ("args.json", "actor.pt"):
        shutil.copy(tmp_path / run_dir.name / name, small)
    rows, out = play(small, "--episodes", 2)
    assert out.startswith("symmetric_ln_popart, goals of seed 1\n")
    assert_same(rows, evaluated(run_dir, 2000))


@pytest.mark.parametrize("path", MODULES)
def test_reads_every_scripts_actor(path, tmp_path):
    agent = MODULES[path].Agent(3, (8, 7))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.normal_()  # biases and LayerNorm's weights are all alike at first
    flags = {"tasks": ["a", "b", "c"], "num_steps": 500}
    checkpoint = {"script": "x", "args": flags, "progress": {"collects": 2}}
    torch.save({**checkpoint, "agent": agent.state_dict()}, tmp_path / "checkpoint.pt")
    policy = enjoy.load_policy(tmp_path)
    obs = torch.randn(20, 42)
    torch.testing.assert_close(policy.actor(obs), agent.actor(obs), rtol=0, atol=0)
    assert policy.title == "x after 3,000 steps"


@pytest.fixture(scope="module")
def pushing(tmp_path_factory):
    """A directory with an actor.pt that only pushes forward, which solves both tasks; the actor."""
    path = tmp_path_factory.mktemp("enjoy") / "pushing"
    path.mkdir()
    agent = MODULES["toppo_mt50.py"].Agent(2, (16,))
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.copy_(torch.tensor([0.0, 0.5, -0.2, 0.0]))
    args = {"tasks": PUSHED, "seed": 1, "reward_version": "v2"}
    saved = {"script": "x", "args": args, "actor": agent.actor.state_dict()}
    torch.save({**saved, "log_std": agent.log_std}, path / "actor.pt")
    return path, agent.actor


def test_an_episode_is_the_scripts_own(pushing):
    """Also where it ends at its success, and the other task's goes on."""
    path, actor = pushing
    args = enjoy.Args(run=path)
    envs, goals = enjoy.make_envs(args, PUSHED, 1, "v2")
    for env, task_goals in zip(envs, goals):
        env.set_task(task_goals[1])
    one_hot = torch.eye(2)
    ours = enjoy.play(enjoy.load_policy(path).actor, envs, one_hot)
    with torch.no_grad():
        scripts = MODULES["toppo_mt50.py"].play_round(envs, actor, one_hot.numpy(), None)
    assert ours.success.all() and scripts.success.all()
    assert 10 < ours.steps[0] < ours.steps[1] < 500
    np.testing.assert_allclose(ours.returns, scripts.rewards.sum(1), rtol=1e-5)
    for steps, rewards in zip(ours.steps, scripts.rewards):
        assert steps == np.flatnonzero(rewards)[-1] + 1


def test_some_tasks_and_other_goals(run_dir, play):
    rows, out = play(run_dir, "--tasks", "reach-v3", "--episodes", 1)
    other_rows, other_out = play(run_dir, "--tasks", "reach-v3", "--episodes", 1, "--seed", 7)
    assert "goals of seed 1\n" in out and "goals of seed 7\n" in other_out
    assert list(rows) == ["reach-v3", "mean"] and rows != other_rows


# --- The video


def frames_of_film(monkeypatch, steps_to_success):
    """Lengths: until the last success, and of the film after it is cut."""
    monkeypatch.setattr(enjoy, "render", lambda env, camera: np.zeros((64, 64, 3), np.uint8))
    film = enjoy.Film([None] * len(steps_to_success), TASKS, "corner2", "episode 1")
    for t in range(501):
        success = np.array([t >= steps for steps in steps_to_success])
        film.show(t, success)
        if success.all():
            break
    return len(film.cut())


@pytest.mark.parametrize(
    "steps_to_success, frames",
    [
        ((10, 101), 27 + 20),  # both: the frames of steps 0, 4, ..., 100 and 101, and a second
        ((10, 999), 4 + 20),  # the other one is never solved: a second after step 12
        ((999, 490), 124 + 20),  # and near the end, where the last picture stands still
        ((999, 999), 126 + 20),  # none: all 500 steps
    ],
)
def test_film_ends_a_second_after_the_last_success(monkeypatch, steps_to_success, frames):
    assert frames_of_film(monkeypatch, steps_to_success) == frames


@needs_egl
def test_gif_is_a_grid_that_moves(pushing, tmp_path):
    path = tmp_path / "policy.gif"
    command = [sys.executable, "enjoy.py", pushing[0], "--episodes", "2", "--size", "64"]
    process = subprocess.run(
        [*command, "--video", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "DISPLAY": ""},
    )
    assert process.returncode == 0 and f"wrote {path}" in process.stdout, process.stderr
    rows, _ = table(process.stdout)
    assert list(rows) == [*PUSHED, "mean"] and rows["mean"][:2] == ["1.000", "4"]

    with Image.open(path) as gif:
        assert gif.size == (2 * 64, 64 + 20) and gif.info["loop"] == 0
        frames = []
        milliseconds = 0
        for i in range(gif.n_frames):
            gif.seek(i)
            milliseconds += gif.info["duration"]
            frames.append(np.asarray(gif.convert("RGB"), int))
    steps = 2 * int(rows["button-press-v3"][3])  # both episodes end at its success
    assert abs(milliseconds / 50 - (steps / 4 + 2 * 20)) < 4
    for column in range(2):  # in each task's picture something has moved
        moved = np.abs(frames[0] - frames[-1])[20:, column * 64 : (column + 1) * 64]
        assert moved.max() > 50


PICTURES = """
import os
os.environ["MUJOCO_GL"] = "egl"
import enjoy, metaworld, numpy as np

def make(name, camera):
    args = enjoy.Args(run="x", video="x.gif", size=64, camera=camera)
    envs, goals = enjoy.make_envs(args, [name], 1, "v2")
    envs[0].set_task(goals[0][0])
    envs[0].reset()
    return envs[0]

# One environment's OpenGL context must not draw another one's scene
names = ["door-open-v3", "reach-v3", "drawer-close-v3"]
alone = []
for name in names:
    env = make(name, "corner2")
    alone.append(enjoy.render(env, "corner2"))
    env.close()
envs = [make(name, "corner2") for name in names]
for _ in range(2):
    for env, picture in zip(envs, alone):
        np.testing.assert_array_equal(enjoy.render(env, "corner2"), picture)
assert len({picture.tobytes() for picture in alone}) == 3

# The sky is above, and the robot stands on the left: neither upside down nor in a mirror
sky, left, right = alone[1][0], alone[1][:, :32], alone[1][:, 32:]
assert np.ptp(sky, axis=0).max() < 10, "no plain sky"
red = lambda part: ((part[..., 0] > 90) & (part[..., 1] < 50)).sum()
assert red(left) > 3 * red(right) > 0

# Of every camera: does it see up where its picture has it?
for camera in enjoy.Args.__annotations__["camera"].__args__:
    up = envs[1].data.camera(camera).xmat.reshape(3, 3)[2, 1]
    assert (up < -0.1) == (camera in enjoy.UPSIDE_DOWN), camera
"""


@needs_egl
def test_pictures_are_upright_and_those_of_environments_alone():
    command = [sys.executable, "-c", PICTURES]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


# --- Errors


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks", "sweep-v3"], "some of the run's, each once: reach-v3 drawer-close-v3"),
        (["--tasks", "reach-v3", "reach-v3"], "some of the run's, each once"),
        (["--episodes", "51"], "episodes: expected 1 to 50, a task's goals"),
        (["--seed", "-1"], "seed: expected 0 to 2^32 - 1"),
        (["--size", "20"], "size: expected 64 to 1024 pixels"),
        (["--video", "policy.avi"], "video: expected a name in .gif or .mp4"),
        (["--video", "none/x.gif"], "video: expected a name in a folder that is there"),
        (["--camera", "nose"], "invalid choice 'nose'"),
        (["--episode", "3"], "--episodes"),
    ],
)
def test_wrong_flags_are_said(run_dir, play, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        play(run_dir, *flags)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert end.value.code == 2 and message in said


def test_what_is_no_checkpoint_is_said(run_dir, play, capsys, tmp_path):
    whole = (run_dir / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[:-1000])
    torch.save({"weights": 1}, tmp_path / "other.pt")
    for path in (tmp_path, tmp_path / "other.pt", tmp_path / "nothing"):
        with pytest.raises(SystemExit) as end:
            play(path)
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1 and "is not a whole checkpoint" in err


def test_a_directory_without_a_policy_says_what_makes_one(play, capsys, tmp_path):
    """As paper/compact.py leaves it without --actor."""
    (tmp_path / "args.json").write_text("{}")
    (tmp_path / "evals.csv").write_text("step,task,episodes,success_rate,mean_return\n")
    with pytest.raises(SystemExit) as end:
        play(tmp_path)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert f"{tmp_path} has no checkpoint.pt" in err
    assert "python paper/compact.py RUN --out FOLDER --actor" in err


def test_a_video_that_cannot_be_written_is_said(pushing, play, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(enjoy, "render", lambda env, camera: np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    (tmp_path / "x.gif").mkdir()
    with pytest.raises(SystemExit) as end:
        play(pushing[0], "--episodes", 1, "--video", tmp_path / "x.gif")
    assert end.value.code == 2 and "expected a file to write to" in capsys.readouterr().err
