"""Many runs: scripts x seeds x task sets x rewards, here or as jobs on SLURM (by submitit).

    python sweep.py --dry-run
    python sweep.py --scripts toppo_mt50 ln --seeds 1 2 --benchmarks MT10 --jobs 2 -- --gamma 0.98
    python sweep.py --engine slurm --slurm-options partition=gpu gpus=1 mem=64G

Without flags the paper's grid. Flags after `--` go to every script. Each run has a directory
OUT/NAME with its output in log.txt. The same command continues; with --status it prints a table.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import submitit
import torch
import tyro

ROOT = Path(__file__).parent
SCRIPTS = {p.stem: p for p in (*ROOT.glob("*_mt*.py"), *sorted(ROOT.glob("ablations/*.py")))}
LADDER = ("vanilla_mtppo", "ln", "ln_popart", "ln_fairgrad", "ln_popart_fairgrad", "toppo_mt50")
OWN_FLAGS = {"--seed", "--tasks", "--benchmark", "--reward-version", "--run-dir"}


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
    reward_versions: tuple[Literal["v1", "v2"], ...] = ()
    """Meta-World's rewards; none: the paper's, v2, and on MT50 v1 as well, which EnvPool has not"""
    out: Path = Path("runs/sweep")
    """folder of the run directories; on SLURM one that all nodes see"""
    dry_run: bool = False
    """print the commands and start none"""
    status: bool = False
    """print the table and start none"""
    engine: Literal["local", "slurm"] = "local"
    """local: this machine, until all runs have ended; slurm: submit the jobs and return"""
    jobs: int = 0
    """local: runs at a time, sharing cores and taking the GPUs in turn; 0: one a GPU, or one"""
    retries: int = 1
    """local: how often a run that has failed is started again"""
    slurm_timeout_min: int = 1440
    """slurm: minutes after which a job is put back in the queue, to continue"""
    slurm_cpus: int = 16
    """slurm: CPU cores of a job (B.1: 16)"""
    slurm_options: tuple[str, ...] = ("gpus=1",)
    """slurm: other options of sbatch, such as partition=NAME account=NAME gpus=1 mem=64G"""


def grid(args, flags, cores):
    """{run directory: command}, seed by seed. flags: those after `--`; cores: of each run."""
    task_sets = {name: ["--benchmark", name] for name in args.benchmarks}
    if args.tasks:
        task_sets = {f"MT{len(args.tasks)}": ["--tasks", *args.tasks]}
    runs = {}
    for seed, task_set, script in product(args.seeds, task_sets, args.scripts):
        both = task_set == "MT50" and "envpool" not in script
        paper_rewards = ("v2", "v1") if both else ("v2",)
        for reward in args.reward_versions or paper_rewards:
            run_dir = args.out / f"{task_set}__{reward}__{script}__seed{seed:02}"
            command = [sys.executable, os.path.relpath(SCRIPTS[script]), "--run-dir", str(run_dir)]
            command += [*task_sets[task_set], "--reward-version", reward, "--seed", str(seed)]
            command += ["--torch-threads", str(cores), "--num-workers", str(cores), *flags]
            runs[run_dir] = command
    return runs


def status(run_dir):
    """The run's name, state, steps, success and ETA, from what is in its directory."""
    if not run_dir.exists():
        return run_dir.name, "waiting", "-", "-", "-"
    state = "stopped"
    fd = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        state = "running"  # a script has a lock on its directory from start to end
    os.close(fd)  # and with it our lock, after microseconds
    try:
        checkpoint = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
        progress = checkpoint["progress"]
        args = json.loads((run_dir / "args.json").read_text())
    except Exception:  # there is no checkpoint yet, or none that is whole, as the script will say
        return run_dir.name, state, "-", "-", "-"
    collect_steps = len(args["tasks"]) * args["num_steps"]
    num_collects = max(1, args["total_timesteps"] // collect_steps)
    coming = range(progress["collects"] + 1, num_collects + 1)
    if not coming:
        state = "done"
    # Training and evaluation each at its own last pace; the last collect is always evaluated
    evals = 1 + sum(c * collect_steps % args["eval_interval"] < collect_steps for c in coming[:-1])
    seconds = len(coming) * progress["collect_seconds"] + evals * progress["evaluation_seconds"]
    eta = f"{seconds / 3600:.1f} h" if state == "running" and progress["collects"] else "-"
    steps = f"{progress['collects'] * collect_steps:,}/{num_collects * collect_steps:,}"
    success = [row[3] for row in progress["evals"][-len(args["tasks"]) :]]
    return run_dir.name, state, steps, f"{sum(success) / len(success):.3f}", eta


class Training(submitit.helpers.Checkpointable):
    """What submitit calls in a process of its own, and again where SLURM has requeued the job."""

    def __call__(self, run_dir, command, starts):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all, and is sweep.py's
        on_slurm = os.environ["SUBMITIT_EXECUTOR"] == "slurm"
        if not on_slurm:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # the script goes with us
        run_dir.mkdir(parents=True, exist_ok=True)
        with open(run_dir / "log.txt", "a") as log:
            for _ in range(starts):
                print("$", shlex.join(command), file=log, flush=True)
                ended = subprocess.run(command, stdout=log, stderr=log)
                if ended.returncode == 0:
                    return
        if on_slurm and ended.returncode in (-signal.SIGTERM, -signal.SIGUSR2):
            time.sleep(3600)  # SLURM takes the job away; one that ends by itself is not requeued
        ended.check_returncode()


def submit_to_slurm(args, runs, executor):
    options = [option.partition("=") for option in args.slurm_options]
    executor.update_parameters(
        timeout_min=args.slurm_timeout_min,
        cpus_per_task=args.slurm_cpus,
        slurm_dependency="singleton",  # a job waits while another one has its name, the run's
        slurm_additional_parameters={name: value or True for name, _, value in options},
    )
    for run_dir, command in runs.items():
        executor.update_parameters(name=str(run_dir))
        job = executor.submit(Training(), run_dir, command, starts=1)
        print(f"job {job.job_id}: {run_dir}", flush=True)


def run_here(args, runs, executor, gpus):
    """Keeps a run going for each entry of gpus until all have ended. Returns how many failed."""
    executor.update_parameters(timeout_min=10 * 365 * 24 * 60)
    waiting = [run_dir for run_dir in runs if status(run_dir)[1] != "running"]
    going = []
    num_failed = 0
    try:
        while waiting or going:
            while waiting and gpus:
                run_dir = waiting.pop(0)
                gpu = gpus.pop(0)
                command = ["env", f"CUDA_VISIBLE_DEVICES={gpu}", *runs[run_dir]]
                # Ctrl-C is blocked in the job, until Training has it ignored
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                job = executor.submit(Training(), run_dir, command, 1 + max(0, args.retries))
                going.append((job, run_dir, gpu))
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                print(f"{time.strftime('%H:%M:%S')} {run_dir.name} starts", flush=True)
            time.sleep(0.5)
            for job, run_dir, gpu in [entry for entry in going if entry[0].done()]:
                going.remove((job, run_dir, gpu))
                gpus.append(gpu)
                failed = job.exception() is not None
                num_failed += failed
                ending = f"has failed: {run_dir}/log.txt" if failed else "is finished"
                print(f"{time.strftime('%H:%M:%S')} {run_dir.name} {ending}", flush=True)
    finally:
        for job, run_dir, gpu in going:
            while not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # lost while a job starts, so again
                time.sleep(1)
    return num_failed


def main():
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    flags = sys.argv[at + 1 :]
    args = tyro.cli(Args, args=sys.argv[1:at], description=__doc__)
    if OWN_FLAGS & {flag.split("=")[0].replace("_", "-") for flag in flags}:
        raise OSError(f"after `--`: {' '.join(sorted(OWN_FLAGS))} are sweep.py's to give")
    gpus = ",".join(str(i) for i in range(torch.cuda.device_count()))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", gpus).split(",")  # [""]: none
    gpus = [gpus[i % len(gpus)] for i in range(max(0, args.jobs) or len(gpus))]  # one for each job
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    cores = args.slurm_cpus if args.engine == "slurm" else max(1, cores // len(gpus))
    runs = grid(args, flags, cores)
    if args.dry_run:
        print("\n".join(map(shlex.join, runs.values())))
        return
    # glibc keeps the large buffers that every minibatch frees: updates take 3 to 5 % less time
    os.environ.update(MALLOC_MMAP_THRESHOLD_="33554432", MALLOC_TRIM_THRESHOLD_="1073741824")
    num_failed = 0
    if not args.status:
        folder = args.out / "submitit" / time.strftime("%Y%m%d-%H%M%S")
        executor = submitit.AutoExecutor(folder, args.engine, slurm_max_num_timeout=10_000)
        if args.engine == "slurm":
            submit_to_slurm(args, runs, executor)
        else:
            num_failed = run_here(args, runs, executor, gpus)
    for row in [("run", "state", "steps", "success", "ETA"), *map(status, runs)]:
        print("{:45} {:7} {:>23} {:>7} {:>8}".format(*row))
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues")
    except (RuntimeError, OSError) as error:  # submitit's are RuntimeErrors
        print(f"sweep: error: {error}", file=sys.stderr)
        sys.exit(2)
