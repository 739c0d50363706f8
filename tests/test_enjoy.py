"""enjoy.py as a person runs it, on a run of a few steps, and its pictures against those of environments drawn alone."""

import csv
import ctypes.util
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, run

TASKS = ["reach-v3", "drawer-close-v3", "push-v3"]
needs_egl = pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="pictures without a screen need libEGL")


def enjoy(*arguments, **environment):
    command = [sys.executable, "enjoy.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Of the rung with LayerNorm in the actor: its network is the one that least looks like the others'."""
    path = tmp_path_factory.mktemp("enjoy") / "run"
    flags = ["--num-steps", 500, "--update-epochs", 2, "--eval-episodes", 12, "--num-workers", 1, "--torch-threads", 1]
    process = run("ablations/symmetric_ln_popart.py", "--tasks", *TASKS, "--total-timesteps", 1500, *flags, "--run-dir", path)
    assert process.returncode == 0, process.stderr
    return path


def rows(process):
    """The table's rows: {task: (success, episodes, mean return)}."""
    lines = [line.split() for line in process.stdout.splitlines()]
    return {x[0]: (float(x[1]), int(x[2]), float(x[3])) for x in lines if x and x[0] in (*TASKS, "mean")}


@pytest.mark.parametrize("checkpoint, step", [("checkpoint.pt", "1500"), ("checkpoint.previous.pt", "0")])
def test_plays_what_the_script_evaluated(run_dir, checkpoint, step):
    process = enjoy(run_dir / checkpoint, "--episodes", 12)
    assert process.returncode == 0, process.stderr
    evaluated = [r for r in csv.DictReader(open(run_dir / "evals.csv")) if r["step"] == step]
    success, returns = np.array([[float(r["success_rate"]), float(r["mean_return"])] for r in evaluated]).T
    table = rows(process)
    assert list(table) == [*TASKS, "mean"]
    np.testing.assert_allclose([table[t][0] for t in TASKS], success, atol=0.0051)  # printed with two digits
    np.testing.assert_allclose([table[t][2] for t in TASKS], returns, atol=0.0501)
    assert table["mean"][1] == 36 and abs(table["mean"][0] - success.mean()) <= 0.0006
    assert step == "1500" or success[1] > 0  # an untrained policy closes some drawers: an episode that ends at its success


def test_some_tasks_and_other_goals(run_dir):
    same, other = enjoy(run_dir / "checkpoint.pt", "--tasks", "push-v3", "--episodes", 2), enjoy(
        run_dir, "--tasks", "push-v3", "--episodes", 2, "--seed", 7)  # fmt: skip
    assert "goals of seed 1\n" in same.stdout and "goals of seed 7\n" in other.stdout
    assert list(rows(same)) == ["push-v3", "mean"] and rows(same) != rows(other)


@needs_egl
def test_gif_is_a_grid_that_moves(run_dir, tmp_path):
    process = enjoy(run_dir, "--episodes", 1, "--size", 64, "--video", tmp_path / "policy.gif", DISPLAY="")
    assert process.returncode == 0 and f"wrote {tmp_path / 'policy.gif'}" in process.stdout, process.stderr
    with Image.open(tmp_path / "policy.gif") as gif:
        assert gif.size == (3 * 64, 64 + 20) and gif.info["loop"] == 0
        first = np.asarray(gif.convert("RGB"), int)
        milliseconds = 0
        for i in range(gif.n_frames):
            gif.seek(i)
            milliseconds += gif.info["duration"]
        last = np.asarray(gif.convert("RGB"), int)
    assert milliseconds == (125 + 20) * 50  # 500 steps of push-v3, every fourth, and a second at the end
    for column in range(3):  # in each task's picture something has moved
        assert np.abs(first - last)[20:, column * 64 : (column + 1) * 64].max() > 50


@needs_egl
def test_pictures_side_by_side_are_those_of_environments_alone():
    """One environment's OpenGL context must not draw another one's scene."""
    code = """if True:
        import os; os.environ["MUJOCO_GL"] = "egl"
        import enjoy, metaworld, numpy as np
        def make(name):
            mt1 = metaworld.MT1(name, seed=1)
            env = mt1.train_classes[name](render_mode="rgb_array", camera_name="corner3", width=64, height=64)
            env.set_task(mt1.train_tasks[0]), env.reset()
            return env
        names = ["door-open-v3", "reach-v3", "drawer-close-v3"]
        alone = []
        for name in names:
            env = make(name)
            alone.append(enjoy.render(env))
            env.close()
        envs = [make(name) for name in names]
        for _ in range(2):
            for env, picture in zip(envs, alone):
                np.testing.assert_array_equal(enjoy.render(env), picture)
        assert len({picture.tobytes() for picture in alone}) == 3
    """
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("flags, message", [
    (["--tasks", "sweep-v3"], "--tasks ('sweep-v3',): expected tasks of the run, each once: reach-v3 drawer-close-v3 push-v3"),
    (["--episodes", "51"], "--episodes 51: expected 1 to 50, a task's goals"),
    (["--video", "policy.avi"], "--video policy.avi: expected a name that ends in .gif or .mp4"),
    (["--camera", "nose"], "--camera nose: expected corner corner2 corner3 corner4 topview behindGripper gripperPOV"),
])  # fmt: skip
def test_wrong_flags_are_one_line(run_dir, flags, message):
    process = enjoy(run_dir, *flags)
    assert (process.returncode, process.stderr) == (2, f"enjoy: error: {message}\n")


def test_what_is_no_checkpoint_is_said(run_dir, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((run_dir / "checkpoint.pt").read_bytes()[:-1000])
    for path in tmp_path, tmp_path / "nothing":
        process = enjoy(path)
        assert process.returncode == 2 and process.stderr.count("\n") == 1 and "is not a whole checkpoint" in process.stderr
