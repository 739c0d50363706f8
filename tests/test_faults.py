"""Faults injected into real runs: kills, signals, damaged files, full disks, numbers that are not finite, hostile input.

Two tasks in small collects stand for a run of a day. The uninterrupted run, which the others must equal, is made once.
"""

import contextlib
import hashlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import MODULES, PATHS, ROOT, run, scalars

SCRIPT, TASKS = "toppo_mt50.py", ["reach-v3", "push-v3"]
FLAGS = ["--tasks", *TASKS, "--num-steps", "500", "--update-epochs", "3", "--num-minibatches", "4", "--eval-episodes", "1",
         "--eval-interval", "3000", "--total-timesteps", "8000", "--torch-threads", "1", "--num-workers", "1"]  # fmt: skip


def result(run_dir):
    """Weights, statistics and the optimiser's state as a digest, evals.csv, and all scalars but the speeds."""
    checkpoint, h = torch.load(run_dir / "checkpoint.pt", weights_only=True), hashlib.sha256()
    optimizer = [v for _, state in sorted(checkpoint["optimizer"]["state"].items()) for v in state.values()]
    for tensor in [*checkpoint["agent"].values(), *optimizer]:
        h.update(tensor.numpy().tobytes())
    return h.hexdigest(), (run_dir / "evals.csv").read_text(), scalars(run_dir)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    process = run(SCRIPT, *FLAGS, "--run-dir", run_dir)
    assert process.returncode == 0, process.stderr
    return result(run_dir)


def start(*flags, script=SCRIPT, **options):
    command = [sys.executable, ROOT / script, "--no-cuda", *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **{"cwd": ROOT, **options})


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(process.stderr.read())


def workers_of(process):
    found = subprocess.run(["pgrep", "-f", "-P", str(process.pid), "spawn_main"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(pids):
    deadline = time.time() + 10
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.time() < deadline, f"orphans: {alive}"
        time.sleep(0.1)


def run_patched(tmp_path, patch, *flags, **options):
    """Runs TOPPO after a change of its module or of Meta-World; spawned workers import this file, and so the change, too."""
    program = f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\nimport os, signal\nimport numpy as np\nimport torch\n"
    program += f"import toppo_mt50 as script\nfrom metaworld.sawyer_xyz_env import SawyerXYZEnv\n{patch}\n"
    last_lines = (ROOT / SCRIPT).read_text().split('if __name__ == "__main__":')[1].replace("main()", "script.main()")
    last_lines = last_lines.replace("time.", "script.time.").replace("{SCRIPT}", "toppo_mt50")
    (tmp_path / "patched.py").write_text(f"{program}if __name__ == '__main__':{last_lines}")
    command = [sys.executable, tmp_path / "patched.py", "--no-cuda", *FLAGS, "--run-dir", tmp_path / "run", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, **options)


PUSH_STEP = """
step = SawyerXYZEnv.step
def broken(env, action):  # push-v3 is evaluated in its first 500 steps, and each collect takes --num-steps more
    obs, reward, terminated, truncated, info = step(env, action)
    if "Push" in type(env).__name__:
        env.number = getattr(env, "number", 0) + 1
        {}
    return obs, reward, terminated, truncated, info
SawyerXYZEnv.step = broken
"""


# Kills


def kill_ten_times(run_dir, seed):
    """kill -9 at random moments of a run that --resume auto continues each time. Returns all its workers."""
    rng, workers, flags = random.Random(seed), [], [*FLAGS, "--run-dir", run_dir, "--resume", "auto"]
    for _ in range(10):
        process = start(*flags)
        # at once, or when it has written a checkpoint or goes on from one: starting Python takes most of the time
        if rng.random() < 0.8 and (line := next((x for x in process.stdout if "|" in x or "continuing" in x), None)):
            time.sleep(rng.uniform(0, 1 if "|" in line else 8))
        else:
            time.sleep(rng.uniform(0, 5))
        workers += workers_of(process)
        process.kill()
        process.communicate()
    return workers


def test_twenty_kills_at_random_moments(straight, tmp_path):
    """Two runs side by side, each killed ten times: both end as the uninterrupted run, nothing doubled, nothing missing."""
    with ThreadPoolExecutor() as pool:
        runs = [tmp_path / "a", tmp_path / "b"]
        for workers in pool.map(kill_ten_times, runs, (0, 1)):
            assert_gone(workers)
        for last in pool.map(lambda run_dir: run(SCRIPT, *FLAGS, "--run-dir", run_dir, "--resume", "auto"), runs):
            assert last.returncode == 0, last.stderr
            assert "continuing from" in last.stdout
    for run_dir in runs:
        assert result(run_dir) == straight


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
IN_WRITING = {  # the third checkpoint's
    "half of checkpoint.tmp": f"""
fsync, calls = os.fsync, []
def broken(fd):
    calls.append(fd)
    if len(calls) == 3:
        os.ftruncate(fd, 4_000_000)
        {KILL}
    fsync(fd)
os.fsync = broken""",
    "no checkpoint.pt": f"""
replace = os.replace
def broken(source, target):
    if "previous" in str(target) and script.Path(target).exists():
        replace(source, target)
        {KILL}
    replace(source, target)
os.replace = broken""",
    "half of evals.csv": f"""
write_text, calls = script.Path.write_text, []
def broken(path, text):
    if path.name == "evals.csv":
        calls.append(path)
    if len(calls) == 2:
        write_text(path, text[: len(text) // 2])
        {KILL}
    write_text(path, text)
script.Path.write_text = broken""",
}


@pytest.mark.parametrize("moment", IN_WRITING)
def test_kill_in_the_middle_of_writing(moment, straight, tmp_path):
    killed = run_patched(tmp_path, IN_WRITING[moment])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if moment == "no checkpoint.pt":
        assert not (tmp_path / "run/checkpoint.pt").exists() and (tmp_path / "run/checkpoint.tmp").exists()
    again = run(SCRIPT, *FLAGS, "--run-dir", tmp_path / "run", "--resume", "auto")
    assert again.returncode == 0, again.stderr
    assert result(tmp_path / "run") == straight


@pytest.fixture(scope="module")
def two_collects(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two_collects") / "run"
    assert run(SCRIPT, *FLAGS, "--total-timesteps", 2000, "--run-dir", run_dir).returncode == 0
    return run_dir


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(damage, two_collects, tmp_path, monkeypatch, capsys):
    newest, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    previous.write_bytes((two_collects / previous.name).read_bytes())
    content = bytearray((two_collects / newest.name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage != "missing":
        newest.write_bytes({"truncated": content[: len(content) // 2], "one bit": content, "empty": b""}[damage])
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--resume", str(tmp_path)])
    _, _, checkpoint = MODULES[SCRIPT].parse_args()
    assert checkpoint["collect"] == 1
    said = capsys.readouterr().out
    assert said.startswith(f"toppo_mt50: continuing from {previous}; {newest} is not a whole checkpoint of toppo_mt50.py (")
    previous.unlink()
    with pytest.raises(SystemExit):
        MODULES[SCRIPT].parse_args()
    assert str(newest) in capsys.readouterr().err


# Signals


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "rollout"), (signal.SIGTERM, "update"), (signal.SIGINT, "evaluation"), (signal.SIGINT, "whole group")],
)
def test_signals_stop_a_run(number, moment, tmp_path):
    """With collects, updates or evaluations so long that the signal falls into them."""
    long = {"update": ["--update-epochs", 9999], "evaluation": ["--eval-episodes", 50]}
    flags = [*FLAGS, *long.get(moment, ["--num-steps", 20_000, "--total-timesteps", 80_000]), "--run-dir", tmp_path / "run"]
    process = start(*flags, start_new_session=True)
    wait_for(process, "run directory" if moment == "evaluation" else "collect 0/")
    time.sleep(4)
    workers, began = workers_of(process), time.time()
    assert len(workers) == 1
    # Ctrl-C in a terminal and some schedulers signal every process
    os.killpg(process.pid, number) if moment == "whole group" else process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert time.time() - began < 5
    assert process.returncode == 1 and "Traceback" not in err
    assert err.strip().splitlines()[-1] == f"stopped; continue with: python {ROOT / SCRIPT} --resume {tmp_path / 'run'}"
    assert_gone(workers)


def test_auto_takes_the_newest_run_with_the_same_flags(tmp_path):
    """One command for the first start and the next; other seeds, flags and scripts have runs of their own."""

    def first_line(*flags, script=SCRIPT):
        process = start(*FLAGS, "--total-timesteps", 1000, "--resume", "auto", *flags, script=script, cwd=tmp_path)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out.splitlines()[0]

    assert "continuing" not in first_line()
    (first,) = Path(tmp_path, "runs").iterdir()
    assert first_line() == f"toppo_mt50: continuing from runs/{first.name}/checkpoint.pt"
    assert "continuing" in first_line("--total-timesteps", 2000)  # the budget may grow
    assert "continuing" not in first_line("--seed", 2)
    assert "continuing" not in first_line("--gamma", 0.98)
    assert "continuing" not in first_line(script="vanilla_mtppo.py")
    assert len([*Path(tmp_path, "runs").iterdir()]) == 4
    assert f"runs/{first.name}/" in first_line()


# Workers


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGKILL, "rollout"), (signal.SIGKILL, "update"), (signal.SIGTERM, "rollout")]
)
def test_a_workers_death_ends_the_run(number, moment, straight, tmp_path):
    """One worker, as the results are to be the same to the last bit as those of the uninterrupted run with one."""
    flags = [*FLAGS, "--run-dir", tmp_path / "run"]
    process = start(*flags, *(["--update-epochs", 9999] if moment == "update" else []))
    wait_for(process, "collect 0/" if moment == "update" else "collect 1/")
    time.sleep(3 if moment == "update" else 0.1)
    (worker,), began = workers_of(process), time.time()
    os.kill(worker, number)
    _, err = process.communicate(timeout=30)
    assert time.time() - began < 8 and process.returncode == 1
    assert "Traceback" not in err and "--resume" in err.splitlines()[-1]
    if number == signal.SIGKILL:
        assert "process of reach-v3 push-v3 died (-9)" in err
    if moment == "rollout":
        again = run(SCRIPT, *flags, "--resume", "auto")
        assert again.returncode == 0, again.stderr
        assert result(tmp_path / "run") == straight


def test_an_environments_exception_ends_the_run(tmp_path):
    process = run_patched(tmp_path, PUSH_STEP.format("if env.number == 900: raise ValueError('unwell')"))
    assert process.returncode == 1
    assert "ValueError: unwell" in process.stderr  # and the traceback, which names the environment's file
    assert "process of reach-v3 push-v3 died (1)" in process.stderr.splitlines()[-1]


# Numbers


@pytest.mark.parametrize("what", ["obs = obs * np.nan", "reward = np.inf"])
def test_an_episode_that_is_not_finite_is_left_out(what, tmp_path):
    flags = ["--num-steps", 1000, "--total-timesteps", 4000, "--eval-interval", 4000]
    process = run_patched(tmp_path, PUSH_STEP.format(f"if env.number == 800: {what}"), *flags)
    assert process.returncode == 0, process.stderr
    assert "collect 0: not finite: {'push-v3': 1}" in process.stderr
    checkpoint, logged = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True), scalars(tmp_path / "run")
    assert all(torch.isfinite(x).all() for x in checkpoint["agent"].values())
    assert logged["skipped/push-v3"] == [(2000, 1.0)] and logged["skipped/reach-v3"] == [(2000, 0.0)]
    assert all(np.isfinite(value) for series in logged.values() for _, value in series)


GRADIENTS = """
losses, calls = script.{0}, []
def broken(*args):
    calls.append(1)
    result = losses(*args)
    if len(calls) in (2, 3):
        spoil = torch.tensor([1.0, {1}])
        result = result * spoil if {0!r} == "policy_losses" else (result[0] * spoil, result[1])
    return result
script.{0} = broken
"""


@pytest.mark.parametrize(("losses", "factor"), [("policy_losses", "float('nan')"), ("value_losses", "float('inf')")])
def test_a_minibatch_that_is_not_finite_is_skipped(losses, factor, tmp_path):
    process = run_patched(tmp_path, GRADIENTS.format(losses, factor), "--total-timesteps", 2000)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("collect 0, repeat 0: minibatch skipped: ['push-v3']") == 2
    assert "collect 0: not finite: {'push-v3': 2}" in process.stderr
    checkpoint, logged = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True), scalars(tmp_path / "run")
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {2 * 12 - 2}
    assert logged["skipped/push-v3"] == [(1000, 2.0)]
    assert all(torch.isfinite(x).all() for x in checkpoint["agent"].values())
    assert all(np.isfinite(value) for series in logged.values() for _, value in series)


def test_a_task_that_stays_not_finite_ends_the_run(tmp_path):
    process = run_patched(tmp_path, PUSH_STEP.format("if env.number > 900: reward = np.nan"))
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1] == "toppo_mt50: error: push-v3: more than 10 skipped in one collect"
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["collect"] == 0 and all(torch.isfinite(x).all() for x in checkpoint["agent"].values())


def test_mujocos_warnings_are_shown_once(tmp_path):
    patch = PUSH_STEP.format("if env.number % 50 == 0: env.data.qvel[:] = 1e12")
    process = run_patched(tmp_path, patch, "--total-timesteps", 1000)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("UserWarning: push-v3: Nan, Inf or huge value in QVEL at DOF 0. The simulation is unstable.") == 1
    assert "WARNING" not in process.stderr and not list(tmp_path.glob("MUJOCO_LOG*"))


# Disks


def test_a_full_disk_leaves_the_last_checkpoint(two_collects, tmp_path):
    """By a limit on the size of files, as anybody may set one."""
    subprocess.run(["cp", "-r", two_collects, tmp_path / "run"], check=True)
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    process = start("--resume", tmp_path / "run", "--total-timesteps", 8000,
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000)))  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert "File too large" in err and "the last checkpoint is whole, continue from it with --resume" in err.splitlines()[-1]
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB, room for two checkpoints of 8 MB and not for three."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", tmp_path / "disk"], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_a_disk_that_fills_and_is_enlarged(small_disk, straight):
    flags = [*FLAGS, "--run-dir", small_disk / "run", "--resume", "auto"]
    full = run(SCRIPT, *flags)
    assert full.returncode == 1 and "Traceback" not in full.stderr and "No space left on device" in full.stderr
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    again = run(SCRIPT, *flags)
    assert again.returncode == 0, again.stderr
    assert result(small_disk / "run") == straight


def test_a_directory_that_cannot_be_written_is_refused(small_disk, tmp_path):
    (tmp_path / "file").write_text("")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for run_dir, reason in (tmp_path / "file/run", "Not a directory"), (small_disk / "run", "Read-only file system"):
        process = run(SCRIPT, *FLAGS, "--run-dir", run_dir)
        expected = f"{reason}; expected a directory to write to, in use by no other run"
        assert (process.returncode, process.stdout) == (2, "")
        assert process.stderr == f"toppo_mt50: error: --run-dir {run_dir}: {expected}\n"


def test_the_second_run_in_a_directory_is_refused(tmp_path):
    flags = [*FLAGS, "--update-epochs", 9999, "--run-dir", tmp_path / "run"]
    process = start(*flags)
    wait_for(process, "run directory")
    second = run(SCRIPT, *flags)  # the first has no checkpoint yet
    assert second.returncode == 2 and second.stderr.count("\n") == 1 and "in use by no other run" in second.stderr
    wait_for(process, "collect 0/")
    second = run(SCRIPT, *flags, "--resume", "auto")
    assert second.returncode == 2 and second.stderr.count("\n") == 1 and "in use by no other run" in second.stderr
    process.terminate()
    process.communicate()


# Determinism


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(straight, tmp_path):
    assert run(SCRIPT, *FLAGS, "--run-dir", tmp_path / "a").returncode == 0
    assert result(tmp_path / "a") == straight
    assert run(SCRIPT, *FLAGS, "--total-timesteps", 1000, "--seed", 2, "--run-dir", tmp_path / "b").returncode == 0
    other, first = scalars(tmp_path / "b"), straight[2]
    assert all(other[tag][0] != first[tag][0] for tag in ("losses/policy", "losses/value", "train_return/mean"))


# Hostile input


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("script", PATHS)
def test_a_checkpoint_that_would_execute_code_is_refused(script, tmp_path, monkeypatch, capsys):
    done, module = str(tmp_path / "done"), MODULES[script]
    checkpoint = {"script": module.SCRIPT, "args": vars(module.Args(tasks=("reach-v3",))), "tasks": ["reach-v3"]}
    torch.save({**checkpoint, "agent": Payload(done)}, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", [script, "--resume", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        module.parse_args()
    assert error.value.code == 2 and "UnpicklingError" in capsys.readouterr().err
    assert not os.path.exists(done)
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)  # it would have
    assert os.path.exists(done)


def test_nothing_unpickles_or_evaluates_what_it_reads():
    for folder in ".", "ablations", "paper", "benchmarks", "tools":
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            for word in "weights_only=False", "allow_pickle=True", "import pickle\n", " eval(", " exec(":
                assert word not in text, path
            assert text.count("torch.load(") == text.count("weights_only=True"), path


WRONG = ["0", "-1", "3", "0.5", "1e400", "nan", "inf", "-inf", "1e-9", "2**5", "None", "True", "", " ", "é", "push-v3", "mt10",
         "/nowhere/run", "--", "-", "99999999999999999999", "'"]  # fmt: skip
RIGHT = {"benchmark": "MT10", "tasks": "reach-v3 push-v3", "reward_version": "v1", "resume": "auto", "run_dir": "new",
         "num_steps": "500", "total_timesteps": "99999999", "learning_rate": "1e-3", "max_grad_norm": "2.5",
         "bootstrap_truncation": "", "clip_vloss": "", "cuda": "", "track": ""}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_random_command_lines(seed, tmp_path, monkeypatch):
    """A hundred each: one clear line and exit code 2, or flags that a run can have."""
    module, rng, accepted = MODULES[SCRIPT], random.Random(seed), 0
    monkeypatch.chdir(tmp_path)
    for _ in range(100):
        flags = []
        for name in rng.sample([*vars(module.Args())], rng.randint(1, 4)):
            flag = "--" + name.replace("_", "-")
            flags += [rng.choice([*5 * [flag], flag.replace("--", "--no-"), flag[:-1]])]
            flags += RIGHT.get(name, "1").split() if rng.random() < 0.8 else rng.choices(WRONG, k=rng.choice([0, 1, 1, 1, 2]))
        monkeypatch.setattr(sys, "argv", [SCRIPT, *flags])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                args, tasks, _ = module.parse_args()
                accepted += 1
                assert tasks and args.num_steps % 500 == 0 and args.total_timesteps >= args.num_steps * len(tasks)
            except SystemExit as end:
                said = err.getvalue()
                assert end.code == 2 and out.getvalue() == "", flags
                assert said.count("\n") == 1 and said.startswith("toppo_mt50: error: ") and len(said) > 40, (flags, said)
    assert 10 <= accepted <= 60


def test_random_command_lines_that_are_accepted_run(tmp_path):
    rng, flags = random.Random(0), []
    choices = {"--update-epochs": [1, 2], "--num-minibatches": [1, 7, 500], "--gamma": [0, 1], "--gae-lambda": [0, 1],
               "--clip-coef": [0, 1e9], "--vf-coef": [0, 1e3], "--ent-coef": [0, 1], "--max-grad-norm": [1e-9, 1e9],
               "--learning-rate": [1e-9, 1], "--hidden-sizes": [1, 7], "--seed": [0, 2**32 - 1]}  # fmt: skip
    for number in range(2):
        flags = [x for name, values in choices.items() for x in (name, rng.choice(values))]
        flags += [rng.choice(["--clip-vloss", "--no-clip-vloss"])]
        process = run(SCRIPT, *FLAGS, "--total-timesteps", 2000, "--run-dir", tmp_path / str(number), *flags)
        assert process.returncode == 0, (flags, process.stderr)
