"""Many runs: scripts x seeds x task sets x rewards, on this machine or as jobs on SLURM.

    python sweep.py --dry-run
    python sweep.py --scripts toppo_mt50 ln --seeds 1 2 --benchmarks MT10 --jobs 2 -- --gamma 0.98
    python sweep.py --slurm partition=gpu gpus=1 mem=64G time=48:00:00

Without flags: the paper's runs with V2 rewards. What follows `--` goes to every run. A run is the
directory OUT/NAME, with what it prints in log.txt. The same command continues what has not ended.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import tyro

with suppress(ImportError):  # it is for SLURM only
    import submitit

ROOT = Path(__file__).resolve().parent
SCRIPTS = {p.stem: str(p) for p in (*ROOT.glob("*_mt*.py"), *ROOT.glob("ablations/*.py"))}
LADDER = ("vanilla_mtppo", "ln", "ln_popart", "ln_fairgrad", "ln_popart_fairgrad", "toppo_mt50")


@dataclass
class Args:
    scripts: tuple[Literal[*SCRIPTS], ...] = LADDER
    """training scripts, those of one's own in ablations/"""
    seeds: tuple[int, ...] = tuple(range(1, 11))
    """a run of each"""
    benchmarks: tuple[Literal["MT10", "MT25", "MT50"], ...] = ("MT10", "MT50")
    """Meta-World task sets"""
    tasks: tuple[str, ...] = ()
    """Meta-World task names, such as reach-v3 door-open-v3, in place of the benchmarks"""
    reward_versions: tuple[Literal["v1", "v2"], ...] = ("v2",)
    """Meta-World's rewards"""
    out: Path = Path("runs/sweep")
    """folder of the run directories; on SLURM one that all nodes see"""
    jobs: int = 1
    """runs at a time on this machine, which share its cores and take its GPUs in turn"""
    slurm: tuple[str, ...] | None = None
    """submit each run to SLURM, with these options of sbatch (24 hours and 16 cores else)"""
    dry_run: bool = False
    """print the commands and start none"""


def grid(args, flags):
    """{run directory: command}, seed by seed. flags: those after `--`."""
    task_sets = {name: ["--benchmark", name] for name in args.benchmarks}
    if args.tasks:
        task_sets = {f"MT{len(args.tasks)}": ["--tasks", *args.tasks]}
    if args.jobs > 1:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        cores = str(max(1, cores // args.jobs))
        flags = ["--torch-threads", cores, "--num-workers", cores, *flags]

    runs = {}
    settings = product(args.seeds, task_sets, args.reward_versions, args.scripts)
    for seed, task_set, reward, script in settings:
        run_dir = args.out / f"{task_set}__{reward}__{script}__seed{seed:02}"
        runs[run_dir] = [sys.executable, SCRIPTS[script], *flags, *task_sets[task_set]]
        runs[run_dir] += ["--reward-version", reward, "--seed", str(seed)]
        runs[run_dir] += ["--run-dir", str(run_dir)]
    return runs


def run_here(runs, jobs):
    """Has so many runs going at a time, until all have ended."""
    import torch

    gpus = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", gpus).split(",")
    started = []  # (run directory, its process, its GPU)
    try:
        for run_dir, command in runs.items():
            while len(busy := [gpu for _, run, gpu in started if run.poll() is None]) >= jobs:
                time.sleep(1)
            gpu = min(gpus, key=busy.count)
            env = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
            run_dir.mkdir(parents=True, exist_ok=True)
            with open(run_dir / "log.txt", "a") as log:
                run = subprocess.Popen(command, stdout=log, stderr=log, env=env)
            started.append((run_dir, run, gpu))
            print(f"started {run_dir}", flush=True)
        failed = [str(run_dir) for run_dir, run, _ in started if run.wait()]
    finally:  # also after Ctrl-C
        for _, run, _ in started:
            run.terminate()
    if failed:
        raise RuntimeError(f"failed, as their log.txt says: {' '.join(failed)}")


class Training:
    """What submitit calls in a job, and again when the job has been put back in the queue."""

    def __call__(self, command):
        ended = subprocess.run(command)
        if ended.returncode == -signal.SIGUSR2:
            time.sleep(600)  # the job's time is over, which SLURM tells submitit as well
        ended.check_returncode()

    def checkpoint(self, command):
        return submitit.helpers.DelayedSubmission(self, command)


def submit(args, runs):
    options = {"time": "24:00:00", "cpus-per-task": 16}  # B.1: 16 cores
    given = (option.partition("=") for option in args.slurm)
    options |= {name: value or True for name, _, value in given}
    executor = submitit.AutoExecutor(args.out / "submitit", "slurm", slurm_max_num_timeout=10_000)
    executor.update_parameters(slurm_additional_parameters=options)
    for run_dir, command in runs.items():
        # singleton: a job waits while another one has its name
        executor.update_parameters(name=str(run_dir), slurm_dependency="singleton")
        job = executor.submit(Training(), command)
        print(f"{run_dir}: job {job.job_id}, {job.paths.stdout}", flush=True)


def main():
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = tyro.cli(Args, args=sys.argv[1:at], description=__doc__)
    runs = grid(args, sys.argv[at + 1 :])
    if args.dry_run:
        print("\n".join(map(shlex.join, runs.values())))
    elif args.slurm is None:
        run_here(runs, max(1, args.jobs))
    elif "submitit" in globals():
        submit(args, runs)
    else:
        raise OSError("jobs on SLURM need submitit: pip install -r requirements-dev.txt")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("sweep: stopped; the same command continues")
    except (RuntimeError, OSError) as error:  # submitit's are RuntimeErrors
        sys.exit(f"sweep: error: {error}")
