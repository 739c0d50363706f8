"""sweep.py: its commands, and real runs that are stopped, continued and put back in the queue."""

import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import sweep
import toppo_mt50
import tyro

ROOT = Path(__file__).parents[1]
TASKS = ["--tasks", "reach-v3", "drawer-close-v3", "--scripts", "toppo_mt50"]
SETTINGS = ["--num-steps", 500, "--hidden-sizes", 16, "--update-epochs", 1, "--no-cuda"]
SETTINGS += ["--num-minibatches", 2, "--eval-episodes", 1, "--eval-interval", 100_000]


def start(*words, **options):
    """Starts sweep.py as a terminal does: in a process group, which Ctrl-C reaches as a whole."""
    command = [sys.executable, ROOT / "sweep.py", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes, **options)


def finish(*words, **options):
    process = start(*words, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_until(condition):
    deadline = time.time() + 300
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def said(log, text):
    return log.read_text().count(text) if log.exists() else 0


def processes(text):
    """Numbers of the processes with text in their command lines."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if text in line]


def test_dry_run_prints_the_papers_grid_from_any_folder(tmp_path):
    code, out, err = finish("--dry-run", cwd=tmp_path)
    assert (code, err) == (0, "")
    found = set()
    for _, script, *words in map(shlex.split, out.splitlines()):
        args = tyro.cli(toppo_mt50.Args, args=words)  # refuses what it does not know
        name = f"{args.benchmark}__v2__{Path(script).stem}__seed{args.seed:02}"
        assert Path(script).exists() and args.run_dir == f"runs/sweep/{name}"
        found.add((Path(script).stem, args.benchmark, args.reward_version, args.seed))
    ladder = "vanilla_mtppo ln ln_popart ln_fairgrad ln_popart_fairgrad toppo_mt50".split()
    assert found == {*product(ladder, ("MT10", "MT50"), ("v2",), range(1, 11))}
    assert not os.listdir(tmp_path)


def test_a_grid_of_ones_own():
    tasks = ("sweep-v3",)
    args = sweep.Args(("ln", "popart"), (7,), (), tasks, ("v1", "v2"), Path("a b"), jobs=1000)
    runs = sweep.grid(args, ["--gamma", "0.9", "--num-workers", "3", "--seed", "1"])
    names = ["v1__ln", "v1__popart", "v2__ln", "v2__popart"]
    assert list(runs) == [Path(f"a b/MT1__{name}__seed07") for name in names]
    for run_dir, (_, script, *words) in runs.items():
        found = tyro.cli(toppo_mt50.Args, args=words)
        assert f"__{found.reward_version}__{Path(script).stem}__" in run_dir.name
        assert (found.tasks, found.run_dir) == (tasks, str(run_dir))
        assert (found.gamma, found.torch_threads, found.num_workers) == (0.9, 1, 3)
        assert found.seed == 7  # a run is what its directory's name says


def test_without_submitit_or_slurm(tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert finish("--help", env=env)[0] == finish("--dry-run", env=env)[0] == 0
    for options, message in (
        ({"env": env}, "pip install -r requirements-dev"),
        ({}, "are you indeed on a slurm cluster?"),
    ):
        code, out, err = finish("--slurm", "gpus=1", **options)
        assert code == 1 and err.startswith("sweep: error: ") and err.count("\n") == 1
        assert message in err and not out


def test_stopped_runs_continue(tmp_path):
    """Two runs side by side, on two GPUs as far as sweep.py knows."""
    words = [*TASKS, "--seeds", 1, 2, "--jobs", 2, "--out", tmp_path, "--", *SETTINGS]
    words += ["--total-timesteps", 6000]
    logs = [tmp_path / f"MT2__v2__toppo_mt50__seed0{seed}/log.txt" for seed in (1, 2)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "5,7"}
    process = start(*words, env=env)
    wait_until(lambda: all(said(log, "1,000 steps, ") for log in logs))
    for log, gpu in zip(logs, "57"):
        script = processes(f"--run-dir {log.parent}")[0]
        environment = Path(f"/proc/{script}/environ").read_text().split("\0")
        assert f"CUDA_VISIBLE_DEVICES={gpu}" in environment

    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (1, "sweep: stopped; the same command continues\n")
    wait_until(lambda: not processes(str(tmp_path)))

    code, _, err = finish(*words, env=env)
    assert (code, err) == (0, "")
    for log in logs:
        assert said(log, "new run") == said(log, ": after ") == said(log, "6,000 steps, 0.0 h") == 1


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    bad, good = (tmp_path / f"MT2__v2__toppo_mt50__seed0{seed}" for seed in (1, 2))
    bad.mkdir()
    (bad / "checkpoint.pt").write_bytes(b"not one")
    words = [*TASKS, "--seeds", 1, 2, "--out", tmp_path, "--", *SETTINGS, "--total-timesteps"]
    code, _, err = finish(*words, 1000)
    assert code == 1 and err == f"sweep: error: failed, as their log.txt says: {bad}\n"
    assert said(bad / "log.txt", "is damaged") == said(good / "log.txt", "1,000 steps, 0.0 h") == 1

    process = start(*words, 10**6)
    wait_until(lambda: said(good / "log.txt", "2,000 steps"))
    process.terminate()  # sweep.py alone, and so it has to end its runs
    assert process.wait(timeout=60) == 1
    wait_until(lambda: not processes(str(tmp_path)))


# SLURM's programs, as far as sweep.py meets them
SLURM = {
    "sbatch": "cp $1 {0}/batch; export SLURM_JOB_ID=77\n"
    "(sh $1; [ -e {0}/requeued ] && sh $1) > {0}/log 2>&1 &\necho Submitted batch job 77",
    "srun": 'shift 5; exec "$@"',  # --unbuffered --output FILE --error FILE
    "scontrol": "echo $@ >> {0}/requeued",
}


def test_a_job_on_slurm_that_is_out_of_time_continues(tmp_path):
    for name, text in SLURM.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + text.format(tmp_path))
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [*TASKS, "--seeds", 1, "--out", tmp_path / "out", "--slurm", "mem=1G", "exclusive"]
    code, out, err = finish(*words, "--", *SETTINGS, "--total-timesteps", 6000, env=env)
    assert (code, err) == (0, "") and "seed01: job 77, " in out
    batch = (tmp_path / "batch").read_text()
    for option in ("time=24:00:00", "cpus-per-task=16", "mem=1G", "exclusive"):
        assert f"#SBATCH --{option}\n" in batch
    assert "--dependency=singleton\n" in batch and "/MT2__v2__toppo_mt50__seed01\n" in batch

    # Out of time: SLURM signals all processes of a job, here the run first
    log = tmp_path / "log"
    wait_until(lambda: said(log, "1,000 steps, "))
    for text in (f"--run-dir {tmp_path}", f"submitit.core._submit {tmp_path}"):
        for number in processes(text)[-1:]:
            os.kill(number, signal.SIGUSR2)
        time.sleep(1)
    wait_until(lambda: said(log, "6,000 steps, 0.0 h"))
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert said(log, "new run") == said(log, ": after ") == 1
