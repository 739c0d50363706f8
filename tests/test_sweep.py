"""sweep.py: commands, table, and jobs that are killed, stopped and requeued in real runs."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
import tyro
from scripts import MODULES, PATHS, ROOT

pytest.importorskip("submitit", reason="needs submitit: pip install -r requirements-sweep.txt")
import sweep  # noqa: E402

GRID = [
    "--scripts",
    "toppo_mt50",
    "--tasks",
    "reach-v3",
    "drawer-close-v3",
    "--reward-versions",
    "v1",
]
SETTINGS = ["--num-steps", "500", "--hidden-sizes", "16", "--update-epochs", "1"]
SETTINGS += ["--num-minibatches", "2", "--eval-episodes", "1", "--no-cuda"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs sweep.py in this process. Returns the lines of its output."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, words)])
        try:
            sweep.main()
        except SystemExit as end:
            assert end.code == 0
        return capsys.readouterr().out.splitlines()

    return call


def start(*words):
    """Starts sweep.py as a terminal does: in a process group of its own, which Ctrl-C reaches."""
    return subprocess.Popen(
        [sys.executable, ROOT / "sweep.py", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(*words):
    process = start(*words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_until(condition, process=None):
    deadline = time.time() + 300
    while not condition():
        assert time.time() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def processes(text):
    """Of the processes with text in their command lines: {pid: parent's pid}."""
    command = ["ps", "-ewwo", "pid,ppid,args"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in listed[1:]]
    return {int(pid): int(parent) for pid, parent, line in rows if text in line}


def said(log, text):
    return log.read_text().count(text) if log.exists() else 0


# --- Commands


def test_dry_run_prints_the_papers_grid(tmp_path, monkeypatch, call):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lines = call("--dry-run", "--out", tmp_path / "runs", "--jobs", 1)
    assert not (tmp_path / "runs").exists()
    found = set()
    for words in map(shlex.split, lines):
        assert words[0] == sys.executable
        path = os.path.relpath(words[1], ROOT)
        args = tyro.cli(MODULES[path].Args, args=words[2:])  # refuses what it does not know
        name = f"{args.benchmark}__{args.reward_version}__{Path(path).stem}__seed{args.seed:02}"
        assert args.run_dir == str(tmp_path / "runs" / name)
        assert args.torch_threads == args.num_workers == len(os.sched_getaffinity(0))
        found.add((path, args.benchmark, args.reward_version, args.seed))
    settings = [("MT10", "v2"), ("MT50", "v2"), ("MT50", "v1")]
    expected = {(p, *s, seed) for p, s, seed in product(PATHS[:6], settings, range(1, 11))}
    assert len(lines) == 180 and found == expected


def test_dry_run_of_ones_own_grid(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a b"
    words = ["--dry-run", "--out", out, "--scripts", "ln", "vanilla_mtppo", "--seeds", 7, 100]
    words += ["--benchmarks", "MT25", "--reward-versions", "v1", "v2", "--jobs", 1000]
    lines = call(*words, "--", "--num-workers=3", "--gamma", "0.9")
    expected = []
    for seed, script, reward in product((7, 100), ("ln", "vanilla_mtppo"), ("v1", "v2")):
        path = os.path.relpath(ROOT / ("ablations/ln.py" if script == "ln" else f"{script}.py"))
        run_dir = shlex.quote(f"{out}/MT25__{reward}__{script}__seed{seed:02}")
        expected.append(
            f"{sys.executable} {path} --run-dir {run_dir} --benchmark MT25 --reward-version "
            f"{reward} --seed {seed} --torch-threads 1 --num-workers 1 --num-workers=3 --gamma 0.9"
        )
    assert lines == expected
    args = tyro.cli(MODULES["vanilla_mtppo.py"].Args, args=shlex.split(lines[-1])[2:])
    assert args.num_workers == 3  # the last one counts

    lines = call(*words, "--tasks", "reach-v3", "push-v3")
    assert len(lines) == 8 and all("/MT2__v" in line for line in lines)
    assert all(" --tasks reach-v3 push-v3 " in line for line in lines)
    assert "benchmark" not in " ".join(lines)

    # EnvPool has v2 rewards only
    lines = call("--dry-run", "--scripts", "toppo_envpool", "toppo_mt50", "--seeds", 1)
    rewards = re.findall(r"(\w+)\.py .* --benchmark (\w+) --reward-version (\w+)", "\n".join(lines))
    assert sorted(rewards) == [
        ("toppo_envpool", "MT10", "v2"),
        ("toppo_envpool", "MT50", "v2"),
        ("toppo_mt50", "MT10", "v2"),
        ("toppo_mt50", "MT50", "v1"),
        ("toppo_mt50", "MT50", "v2"),
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--scripts nothing", "invalid choice 'nothing'"),
        ("--seeds one", "Error parsing --seeds"),
        ("--benchmarks MT11", "invalid choice 'MT11'"),
        ("--reward-versions v3", "invalid choice 'v3'"),
        ("--engine ray", "invalid choice 'ray'"),
        ("--seed 1", "Perhaps you meant: --seeds"),
    ],
)
def test_wrong_flags_are_said(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words.split()])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert end.value.code == 2 and message in said


@pytest.mark.parametrize(
    "words, message",
    [
        ("--engine slurm", "are you indeed on a slurm cluster?"),
        ("--out README.md", "README.md"),
        ("-- --gamma 0.9 --run_dir=x", "--run-dir --seed --tasks are sweep.py's to give"),
    ],
)
def test_other_errors_are_one_line(words, message):
    code, out, err = finish(*words.split())
    assert (code, out) == (2, "") and err.startswith("sweep: error: ") and err.count("\n") == 1
    assert message in err


# --- The table


def write_run(path, collects, total_timesteps=40_000, collect_seconds=720.0):
    """A run directory on two tasks, as far as the table reads it."""
    path.mkdir()
    args = {"tasks": ["a", "b"], "num_steps": 1000, "eval_interval": 8000}
    args["total_timesteps"] = total_timesteps
    (path / "args.json").write_text(json.dumps(args))
    evals = [(0, "a", 50, 0.1, 1.0), (0, "b", 50, 0.2, 1.0)]
    evals += [(2000, "a", 50, 0.5, 1.0), (2000, "b", 50, 0.9, 1.0)]
    pace = {"collect_seconds": collect_seconds, "evaluation_seconds": 1800.0}
    checkpoint = {"progress": {"collects": collects, "evals": evals, **pace}}
    torch.save(checkpoint, path / "checkpoint.pt")


def test_table_of_all_states(tmp_path, call):
    name = "MT2__v1__toppo_mt50__seed0{}".format
    write_run(tmp_path / name(1), 20)
    write_run(tmp_path / name(2), 10, total_timesteps=41_999)  # less than another collect
    write_run(tmp_path / name(3), 10)
    write_run(tmp_path / name(4), 0, collect_seconds=0.0)  # has its first evaluation only
    (tmp_path / name(5)).mkdir()
    (tmp_path / name(6)).mkdir()
    (tmp_path / name(6) / "checkpoint.pt").write_bytes(b"not a whole one")
    locks = [os.open(tmp_path / name(i), os.O_RDONLY) for i in (2, 4, 5)]
    for fd in locks:
        fcntl.flock(fd, fcntl.LOCK_EX)
    words = ["--status", *GRID, "--seeds", 1, 2, 3, 4, 5, 6, 7, "--out", tmp_path]
    rows = [line.split() for line in call(*words)]
    assert rows[0] == ["run", "state", "steps", "success", "ETA"]
    # Ten collects of 0.2 h, and at 24,000, 32,000 and 40,000 steps an evaluation of 0.5 h
    assert rows[1:] == [
        [name(1), "done", "40,000/40,000", "0.700", "-"],
        [name(2), "running", "20,000/40,000", "0.700", "3.5", "h"],
        [name(3), "stopped", "20,000/40,000", "0.700", "-"],
        [name(4), "running", "0/40,000", "0.700", "-"],
        [name(5), "running", "-", "-", "-"],
        [name(6), "stopped", "-", "-", "-"],
        [name(7), "waiting", "-", "-", "-"],
    ]
    for fd in locks:
        os.close(fd)
    states = [line.split()[1] for line in call(*words)[1:]]
    assert states == ["done", "stopped", "stopped", "stopped", "stopped", "stopped", "waiting"]


# --- Jobs on this machine


def test_killed_and_stopped_runs_continue(tmp_path, monkeypatch, call):
    """Two runs side by side. The script of one is killed and goes on by itself; Ctrl-C ends both,
    and the same command goes on with them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")  # two GPUs, as far as sweep.py knows
    words = [*GRID, "--seeds", 1, 2, "--out", tmp_path, "--", *SETTINGS]
    words += ["--total-timesteps", 6000, "--eval-interval", 100_000]
    one, two = (tmp_path / f"MT2__v1__toppo_mt50__seed0{seed}" for seed in (1, 2))
    log = one / "log.txt"
    process = start(*words)
    wait_until(lambda: said(log, "collect 1/"), process)
    [script] = processes(f"--run-dir {one} ")
    environment = Path(f"/proc/{script}/environ").read_text().split("\0")
    assert "MALLOC_MMAP_THRESHOLD_=33554432" in environment
    assert "MALLOC_TRIM_THRESHOLD_=1073741824" in environment
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f" --torch-threads {cores} --num-workers {cores} " in log.read_text()

    os.kill(script, signal.SIGKILL)
    wait_until(lambda: said(log, "to continue:") == 2 and said(log, "collect 3/"), process)
    assert sweep.status(one)[1] == "running"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and err == "\nstopped; the same command continues\n"
    assert "has failed" not in out and not processes(str(tmp_path))
    assert sweep.status(one)[1] == "stopped"
    assert not said(log, "stopped;")  # by its own Ctrl-C, after which its job would start it again

    code, out, err = finish(*words)
    assert (code, err) == (0, ""), out
    assert [line.split()[1] for line in out.splitlines()[-2:]] == ["done", "done"]
    assert said(log, "$ env CUDA_VISIBLE_DEVICES=5 ") == 3
    assert said(two / "log.txt", "$ env CUDA_VISIBLE_DEVICES=7 ") == 2
    for path in (log, two / "log.txt"):
        assert said(path, "collect 1/6, ") == said(path, "collect 6/6, ") == 1


def test_failed_runs_and_those_of_others(tmp_path):
    held = tmp_path / "MT2__v1__toppo_mt50__seed01"
    held.mkdir()
    fd = os.open(held, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    words = [*GRID, "--seeds", 1, 2, "--out", tmp_path, "--retries", 1]
    code, out, err = finish(*words, "--", "--gamma", 2)
    os.close(fd)
    failed = tmp_path / "MT2__v1__toppo_mt50__seed02"
    assert (code, err) == (1, "")
    assert f" {failed.name} has failed: {failed}/log.txt\n" in out
    assert said(failed / "log.txt", "$ ") == said(failed / "log.txt", "gamma, gae_lambda:") == 2
    assert os.listdir(held) == [] and f"{held.name} starts" not in out


# --- SLURM, as far as it goes without a cluster: programs of its names that do here what it does

SBATCH = """#!/bin/sh
# Runs the job, and again when it has been requeued
cp $1 {0}/batch
while :; do
    SLURM_JOB_ID=77 sh $1
    [ -e {0}/requeued ] || break
    mv {0}/requeued {0}/done
done > {0}/log 2>&1 &
echo Submitted batch job 77
"""
SRUN = """#!/bin/sh
# srun --unbuffered --output FILE --error FILE COMMAND
shift 5
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "$@" > {0}/requeued
"""


def programs(folder, monkeypatch, **texts):
    """Puts programs in front of the machine's own."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text.format(folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_slurm_job_is_requeued_before_its_time_is_up(tmp_path, monkeypatch):
    slurm = tmp_path / "slurm"
    programs(slurm, monkeypatch, sbatch=SBATCH, srun=SRUN, scontrol=SCONTROL)
    words = [*GRID, "--seeds", 1, "--out", tmp_path / "runs", "--engine", "slurm"]
    words += ["--slurm-cpus", 1, "--slurm-timeout-min", 5]
    words += ["--slurm-options", "partition=gpu", "mem=64G", "exclusive"]
    words += ["--", *SETTINGS, "--total-timesteps", 3000, "--eval-interval", 100_000]
    code, out, err = finish(*words)
    run_dir = tmp_path / "runs" / "MT2__v1__toppo_mt50__seed01"
    assert (code, err) == (0, "") and out.startswith(f"job 77: {run_dir}\n")
    batch = (slurm / "batch").read_text().splitlines()
    for option in ("partition=gpu", "mem=64G", "exclusive", "time=5", "signal=USR2@90"):
        assert f"#SBATCH --{option}" in batch
    for option in ("cpus-per-task=1", f"job-name={run_dir}", "dependency=singleton"):
        assert f"#SBATCH --{option}" in batch

    # SLURM signals all processes of a job that has to go
    log = run_dir / "log.txt"
    wait_until(lambda: said(log, "collect 1/"))
    [(script, job)] = processes(f"--run-dir {run_dir} ").items()
    os.kill(script, signal.SIGUSR2)
    wait_until(lambda: script not in processes("--run-dir"))
    time.sleep(2)  # not all at the same moment
    os.kill(job, signal.SIGUSR2)
    wait_until(lambda: (slurm / "done").exists())
    assert (slurm / "done").read_text() == "requeue 77\n"
    wait_until(lambda: sweep.status(run_dir)[1] == "done" and not processes(str(tmp_path)))
    assert said(log, "$ ") == 2 and said(log, "collect 1/3, ") == said(log, "collect 3/3, ") == 1
