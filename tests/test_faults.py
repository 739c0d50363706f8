"""Faults injected into real runs: kills, signals, full disks, numbers that are not finite.

Two tasks in small collects stand for a run of a day. The uninterrupted run, which the others must
equal to the last bit, is made once. Nothing here waits for a time, but for what a script shows.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from scripts import ROOT, SMALL, Terminal, result, run, start

SCRIPT = "toppo_mt50.py"
FLAGS = [*SMALL, "--total-timesteps", "5000", "--eval-interval", "2000"]  # five collects
PATIENCE = 600  # seconds, on a machine that others use too


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What the run without a fault ends with."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    process = run(SCRIPT, *FLAGS, "--run-dir", run_dir)
    assert process.returncode == 0, process.stderr
    return result(run_dir)


def assert_continues_to_the_same_end(run_dir, straight):
    process = run(SCRIPT, *FLAGS, "--run-dir", run_dir)
    assert process.returncode == 0, process.stderr
    assert result(run_dir) == straight


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


def workers_of(process):
    found = ["pgrep", "-P", str(process.pid), "-f", "spawn_main"]
    pids = subprocess.run(found, capture_output=True, text=True).stdout.split()
    return sorted(map(int, pids))  # in the order in which they were started


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_nothing_is_left_of(process):
    """Each test starts its script in a session of its own, where its workers are, too."""
    process.wait(timeout=PATIENCE)

    def nobody():
        found = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True)
        return not any(is_alive(int(pid)) for pid in found.stdout.split())

    wait_until(nobody)


def run_patched(tmp_path, patch, *flags):
    """Runs TOPPO with lines added behind its functions, in the main process and the workers."""
    program, last_lines = (ROOT / SCRIPT).read_text().split('if __name__ == "__main__":')
    path = tmp_path / SCRIPT
    path.write_text(f'{program}{patch}\n\nif __name__ == "__main__":{last_lines}')
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return run(path, *FLAGS, "--run-dir", tmp_path / "run", *flags, env=env, cwd=tmp_path)


# Kills


def kill_at_random_moments(run_dir, moments, seed):
    """kill -9 in each of the moments of a run that the same command continues every time."""
    rng = random.Random(seed)
    for moment in moments:
        process = start(SCRIPT, *FLAGS, "--run-dir", run_dir)
        if moment == "start":
            time.sleep(rng.uniform(0, 5))
        else:  # none, if the run has come to its end
            next((line for line in process.stdout if moment in line), None)
            time.sleep(rng.uniform(0, 5 if moment == "to continue" else 1))
        process.kill()
        process.communicate()
        wait_until_nothing_is_left_of(process)


@pytest.mark.short
def test_kills_at_random_moments(straight, tmp_path):
    """While it starts, while it plays, and after a collect."""
    moments = ["to continue", "collect", "start"]
    kill_at_random_moments(tmp_path / "run", moments, seed=0)
    assert_continues_to_the_same_end(tmp_path / "run", straight)


@pytest.mark.long
def test_twenty_kills_at_random_moments(straight, tmp_path):
    """Two runs side by side, each killed ten times."""
    moments = random.Random(0).choices(["start", "to continue", "collect"], [1, 2, 2], k=20)
    with ThreadPoolExecutor() as pool:
        runs = [tmp_path / "a", tmp_path / "b"]
        list(pool.map(kill_at_random_moments, runs, [moments[:10], moments[10:]], (0, 1)))
        for run_dir in runs:
            assert_continues_to_the_same_end(run_dir, straight)


KILL_IN_WRITING = """
fsync = os.fsync


def kill_in_the_third_checkpoint(fd):
    path = Path(f"/proc/self/fd/{fd}").resolve()
    if path.name == "checkpoint.pt.tmp" and "2000," in Path(path.parent, "evals.csv").read_text():
        os.ftruncate(fd, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)


os.fsync = kill_in_the_third_checkpoint
"""


def test_a_kill_in_the_middle_of_writing(straight, tmp_path):
    """With half a checkpoint written aside, and evals.csv and TensorBoard ahead of the last."""
    killed = run_patched(tmp_path, KILL_IN_WRITING)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run/checkpoint.pt.tmp").exists()
    assert "2000," in (tmp_path / "run/evals.csv").read_text()
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["collects"] == 1
    assert_continues_to_the_same_end(tmp_path / "run", straight)


# Signals


def last_words(run_dir):
    return f"stopped; to continue: python {SCRIPT} --run-dir {run_dir}"


def test_ctrl_c_in_a_terminal(tmp_path):
    """The terminal signals every process. In the middle of an update."""
    flags = ["--update-epochs", 10_000, "--run-dir", tmp_path]
    terminal = Terminal(SCRIPT, *FLAGS, *flags)
    terminal.read_until("update:")
    terminal.press_ctrl_c()
    assert terminal.read_to_the_end() == 1
    wait_until_nothing_is_left_of(terminal.process)
    after = terminal.screen.split("^C")[1]
    lines = [line.split("\r")[-1].strip() for line in after.split("\r\n")]
    assert [line for line in lines if line] == [last_words(tmp_path)]


def test_sigint_of_the_main_process_alone(straight, tmp_path):
    """One line and no more, while the workers play; and the run continues."""
    process = start(SCRIPT, *FLAGS, "--run-dir", tmp_path)
    wait_for_line(process, "collect 1/5")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err == f"\n{last_words(tmp_path)}\n"
    wait_until_nothing_is_left_of(process)
    assert_continues_to_the_same_end(tmp_path, straight)


def test_a_second_process_is_refused_and_sigterm_leaves_nothing(tmp_path):
    flags = [*FLAGS, "--update-epochs", 10_000, "--run-dir", tmp_path]
    process = start(SCRIPT, *flags)
    wait_until((tmp_path / "checkpoint.pt").exists)  # its first collect has begun

    second = run(SCRIPT, *flags)
    assert second.returncode == 2
    said = f"toppo_mt50: error: --run-dir {tmp_path}: another process is at this run\n"
    assert second.stderr == said

    assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in err
    wait_until_nothing_is_left_of(process)


# Workers


def assert_worker_is_missed(process, names, code):
    """One line that names the tasks of the worker that died, and no other's."""
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err == f"toppo_mt50: error: the process of {names} died ({code})\n"
    wait_until_nothing_is_left_of(process)


def test_a_workers_death_while_it_plays(tmp_path):
    """The second of two, in a rollout of a minute."""
    flags = ["--num-workers", 2, "--num-steps", 50_000, "--total-timesteps", 100_000]
    process = start(SCRIPT, *FLAGS, *flags, "--run-dir", tmp_path)
    wait_until((tmp_path / "checkpoint.pt").exists)
    reach, push = workers_of(process)
    os.kill(push, signal.SIGKILL)
    assert_worker_is_missed(process, "push-v3", -9)


def test_a_workers_death_while_it_waits(tmp_path):
    """In an update, which is not disturbed: what is learned by then is kept."""
    terminal = Terminal(SCRIPT, *FLAGS, "--update-epochs", 30, "--run-dir", tmp_path)
    terminal.read_until("update:")
    (worker,) = workers_of(terminal.process)
    os.kill(worker, signal.SIGTERM)
    assert terminal.read_to_the_end() == 2
    wait_until_nothing_is_left_of(terminal.process)
    said = "toppo_mt50: error: the process of reach-v3 push-v3 died (-15)\r\n"
    assert terminal.screen.count(said) == 1
    assert "Traceback" not in terminal.screen
    assert "collect 1/5" in terminal.screen


# Disks


@pytest.mark.parametrize(
    "what", ["a limit on files", pytest.param("a file system", marks=pytest.mark.long)]
)
def test_a_full_disk_leaves_the_last_checkpoint_good(what, straight, tmp_path):
    """A real one needs root; anybody may limit the size of the files that a process writes."""
    run_dir = tmp_path / "disk/run"
    run_dir.mkdir(parents=True)
    if what == "a file system":
        mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", tmp_path / "disk"]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
    try:
        process = start(SCRIPT, *FLAGS, "--run-dir", run_dir)
        wait_for_line(process, "collect 2/5")
        if what == "a limit on files":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (25_000, 25_000))
        else:
            fill = ["dd", "if=/dev/zero", f"of={tmp_path / 'disk/others'}", "bs=4096"]
            subprocess.run(fill, capture_output=True)
        _, err = process.communicate(timeout=PATIENCE)
        reason = "File too large" if what == "a limit on files" else "No space left on device"
        assert process.returncode == 2
        # TensorBoard's own thread may say at the same moment that it could not write either
        assert err.count("\n") == 1 or "tensorboard" in err
        assert reason in err
        assert "; the last checkpoint is good\n" in err
        wait_until_nothing_is_left_of(process)

        (tmp_path / "disk/others").unlink(missing_ok=True)
        assert_continues_to_the_same_end(run_dir, straight)
    finally:
        if what == "a file system":
            subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


# Numbers

SPOILT_STEP = """
from metaworld.sawyer_xyz_env import SawyerXYZEnv

step = SawyerXYZEnv.step


def spoilt_step(env, action):
    obs, reward, *others = step(env, action)
    env.steps = getattr(env, "steps", 0) + 1
    is_push = "Push" in type(env).__name__
    {lines}
    return obs, reward, *others


SawyerXYZEnv.step = spoilt_step
"""


def test_episodes_that_are_not_finite_are_replaced(tmp_path):
    """Said, counted, and the same in a run that is continued: what is spoilt depends on the noise.

    One of reach-v3's rewards is infinite, one of push-v3's observations is no number.
    """
    lines = """if env.curr_path_length == 499 and action[0] > 0.5:
        obs = obs * np.nan if is_push else obs
        reward = reward if is_push else np.inf"""
    patch = SPOILT_STEP.format(lines=lines)
    flags = ["--num-steps", 1500, "--total-timesteps", 9000, "--eval-interval", 9000]
    process = run_patched(tmp_path, patch, *flags, "--keep-checkpoints-every", 1)
    assert process.returncode == 0, process.stderr
    tensors, tables, logged = result(tmp_path / "run")
    said = process.stderr.splitlines()
    expected = [
        f"toppo_mt50: replaced an episode of {task}: not finite" for task in ("reach-v3", "push-v3")
    ]
    assert set(said) == set(expected)
    assert len(said) == sum(count for _, count in logged["replaced_episodes"])
    for tag, series in logged.items():
        assert all(abs(value) < float("inf") for _, value in series), tag

    again = tmp_path / "again"
    (again / "run").mkdir(parents=True)
    shutil.copy(tmp_path / "run/checkpoint_00001.pt", again / "run/checkpoint.pt")
    process = run_patched(again, patch, *flags)
    assert process.returncode == 0, process.stderr
    assert process.stderr.splitlines() == said[-len(process.stderr.splitlines()) :]
    new_tensors, new_tables, new_logged = result(again / "run")
    assert new_tensors == tensors
    assert new_tables == tables
    assert new_logged["replaced_episodes"] == logged["replaced_episodes"][1:]


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path):
    """In the second collect, by rewards that are finite and whose sum is not, of push-v3."""
    lines = "reward = 1e38 if is_push and env.steps > 1250 else reward"
    process = run_patched(tmp_path, SPOILT_STEP.format(lines=lines))
    assert process.returncode == 2
    what = "gradients that are not finite: push-v3; the last checkpoint is good"
    assert process.stderr.endswith(f"toppo_mt50: error: {what}\n")
    assert "Traceback" not in process.stderr
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["collects"] == 1
    assert all(torch.isfinite(x).all() for x in checkpoint["agent"].values())


def test_an_environments_exception_ends_the_run(tmp_path):
    """With the traceback of the worker, which says where, before the line that names its tasks."""
    lines = "if is_push and env.steps == 100: raise ValueError('unwell')"
    process = run_patched(tmp_path, SPOILT_STEP.format(lines=lines))
    assert process.returncode == 2
    assert "ValueError: unwell" in process.stderr
    last = "toppo_mt50: error: the process of reach-v3 push-v3 died (1)"
    assert process.stderr.splitlines()[-1] == last
