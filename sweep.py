"""Many runs: scripts x seeds x benchmarks x rewards as jobs, N at a time on one machine or as a job array on SLURM.

    python sweep.py --dry-run                    prints the paper's grid, 180 commands
    python sweep.py --scripts toppo_mt50 ln --seeds 1 2 3 --benchmarks MT10 --jobs 2 -- --total-timesteps 1000000
    python sweep.py --engine slurm --slurm-options partition=gpu gpus=1 mem=64G
    python sweep.py --status (and the same arguments)

Each job starts a script as a person would, with --run-dir DIR/NAME --resume auto and all that follows `--`; its output goes to
DIR/NAME.log. The same command again continues: what is done or running is left alone; what was stopped, was killed or has failed
goes on from its checkpoint. Flags after `--` other than --total-timesteps must stay the same for one --dir.

The paper's grid is its ladder's six rungs and ten seeds, on MT10 and MT50 with V2 rewards and on MT50 with V1.

Jobs go through submitit (pip install -r requirements-sweep.txt): the clusters that such runs are made on mostly have SLURM, and
this one small package submits to it, requeues, and has a local mode. Ray would want a cluster of its own.
"""

import fcntl
import json
import os
import pickletools
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from itertools import product, takewhile
from pathlib import Path
from typing import NamedTuple

import tyro

ROOT = Path(__file__).resolve().parent
LADDER = "vanilla_mtppo", "ln", "ln_popart", "ln_fairgrad", "ln_popart_fairgrad", "toppo_mt50"
PAPER_REWARDS = {"MT10": ("v2",), "MT25": ("v2",), "MT50": ("v2", "v1")}  # MT25 is not the paper's
PROGRESS = re.compile(r"collect (\d+)/\d+, [\d,]+ steps, ([\d,]+) steps/s")  # the scripts' line after a collect
REPORT_SECONDS = 300  # between lines on how it goes while nothing ends


@dataclass
class Args:
    scripts: tuple[str, ...] = LADDER
    """training scripts: names or paths"""
    seeds: tuple[int, ...] = tuple(range(1, 11))
    """a run of each"""
    benchmarks: tuple[str, ...] = ("MT10", "MT50")
    """MT10, MT25, MT50; --tasks after `--` takes their place"""
    reward_versions: tuple[str, ...] = ()
    """v1, v2; none: the paper's, which are v2, and on MT50 v1 as well"""
    dir: Path = Path("runs/sweep")
    """folder of the runs and their logs; on SLURM one that all nodes see"""
    jobs: int = 0
    """runs at a time; 0: one for each GPU or else one, on SLURM as many as it lets. On one machine they share its cores by
    --torch-threads and --num-workers, unless these come after `--`, and take its GPUs in turn: those of CUDA_VISIBLE_DEVICES, or
    else those that nvidia-smi lists"""
    retries: int = 1
    """how often a run that has failed is started again, from its checkpoint; not on SLURM"""
    dry_run: bool = False
    """print the commands that would be started, and start none"""
    status: bool = False
    """print the table of all runs, and start none"""
    engine: str = "local"
    """local: this machine, until all is done; slurm: submit a job array and return"""
    slurm_timeout_min: int = 1440
    """minutes after which SLURM requeues a job, which then continues"""
    slurm_cpus: int = 16
    """CPU cores of a job on SLURM (B.1: 16)"""
    slurm_options: tuple[str, ...] = ("gpus=1",)
    """sbatch's other options, such as partition=NAME account=NAME gpus=1 mem=64G"""


class Run(NamedTuple):
    dir: Path
    log: Path
    job: Path  # file with the number of its job on SLURM
    command: list[str]
    num_tasks: int
    given: dict[str, int]  # total_timesteps and num_steps, where flags say them


class Status(NamedTuple):
    state: str
    steps: int
    total: int
    success: float | None  # mean of the last evaluation
    rate: float | None  # steps per second
    eta: float | None  # seconds
    last_line: str  # of the log


def check(ok, message):
    if not ok:
        print(f"sweep: error: {message}", file=sys.stderr)
        sys.exit(2)


def values_of(flags, name):
    """What follows --name in flags, [] where it is not there."""
    words = [word for flag in flags for word in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    at = [i + 1 for i, word in enumerate(words) if word.replace("_", "-") == f"--{name}"]
    return [*takewhile(lambda word: not word.startswith("--"), words[at[-1] :])] if at else []


def parse_args():
    """Returns the checked arguments, and those after `--`, which are for the scripts."""
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    try:
        with redirect_stderr(StringIO()) as box:  # tyro draws one around an error, which is to be a line like all others
            args = tyro.cli(Args, args=own, description=__doc__)
    except SystemExit as end:
        check(not end.code, " ".join(box.getvalue().split("│ ─")[0].translate(dict.fromkeys(map(ord, "│╭╮╰╯─"))).split()))
        raise  # --help
    starts = not (args.dry_run or args.status)
    for name, ok, expected in [
        *((n, len({*(x := vars(args)[n])}) == len(x) > 0, "one or more, each once") for n in ("scripts", "seeds", "benchmarks")),
        ("benchmarks", {*args.benchmarks} <= {*PAPER_REWARDS}, "MT10, MT25 or MT50"),
        ("reward_versions", sorted(args.reward_versions) in ([], ["v1"], ["v2"], ["v1", "v2"]), "v1, v2 or both"),
        ("dir", not args.dir.exists() or args.dir.is_dir(), "a folder"),
        *((n, vars(args)[n] >= 0, "0 or more") for n in ("jobs", "retries")),
        *((n, vars(args)[n] > 0, "> 0") for n in ("slurm_timeout_min", "slurm_cpus")),
        ("slurm_options", all("=" in option for option in args.slurm_options), "NAME=VALUE each"),
        ("engine", args.engine in ("local", "slurm"), "local or slurm"),
        ("engine", args.engine == "local" or not starts or shutil.which("sbatch"), "a machine with sbatch"),
    ]:
        check(ok, f"--{name.replace('_', '-')} {vars(args)[name]}: expected {expected}")
    for name in "seed", "benchmark", "reward-version", "run-dir", "resume":
        check(not values_of(flags, name), f"--{name} after `--`: sweep.py sets it for each run")
    check(not starts or find_spec("submitit"), "submitit is not installed: pip install -r requirements-sweep.txt")
    return args, flags


def grid(args, flags, cores):
    """The runs in the order in which they are started, seed by seed. cores: of each run."""
    tasks, given, scripts, runs = values_of(flags, "tasks"), {}, [], {}
    for name in args.scripts:
        places = Path(name), *(ROOT / folder / f"{Path(name).stem}.py" for folder in ("", "ablations"))
        path = next((p.resolve() for p in places if p.is_file()), None)
        check(path, f"--scripts {name}: expected a training script, such as toppo_mt50 or ablations/ln.py")
        scripts.append(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    for name in "total-timesteps", "num-steps":
        for value in values_of(flags, name)[:1]:
            check(value.isdecimal() and int(value) > 0, f"--{name} {value}: expected a number of steps")
            given[name.replace("-", "_")] = int(value)
    sets = {f"MT{len(tasks)}": []} if tasks else {name: ["--benchmark", name] for name in args.benchmarks}
    settings = [(t, reward) for t in sets for reward in args.reward_versions or PAPER_REWARDS.get(t, ("v2",))]
    shares = [word for n in ("torch-threads", "num-workers") if not values_of(flags, n) for word in (f"--{n}", str(cores))]
    for seed, (task_set, reward), script in product(args.seeds, settings, scripts):
        check(reward == "v2" or not script.stem.endswith("envpool"), f"--scripts {script}: EnvPool has --reward-versions v2 only")
        path = args.dir / f"{task_set}__{reward}__{script.stem}__seed{seed:02}"
        check(path not in runs, f"--scripts {script}: another one has that name")
        command = [sys.executable, str(script), *sets[task_set], "--reward-version", reward, "--seed", str(seed),
                   "--run-dir", str(path), "--resume", "auto", *shares, *flags]  # fmt: skip
        runs[path] = Run(path, Path(f"{path}.log"), Path(f"{path}.job"), command, int(task_set[2:]), given)
    return [*runs.values()]


# What a run's files say.


def is_running(run):
    """A script locks its run directory when it is ready, and a job locks its log before."""
    for path in run.dir, run.log:
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY if path == run.dir else os.O_RDWR)  # NFS wants a file that is locked to be writable
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)  # free again within microseconds
    return False


def steps_of(run):
    """Steps in the newest checkpoint, 0 without one: read off its pickle, because importing PyTorch takes seconds."""
    for name in "checkpoint.pt", "checkpoint.previous.pt":  # the second while the first is being replaced
        with suppress(FileNotFoundError, zipfile.BadZipFile, StopIteration), zipfile.ZipFile(run.dir / name) as file:
            pickled = file.read(next(n for n in file.namelist() if n.endswith("/data.pkl")))
            words = (word for opcode, word, _ in pickletools.genops(pickled) if word is not None and "PUT" not in opcode.name)
            next(word for word in words if word == "global_step")
            return next(words)
    return 0


def success_of(run):
    """Mean success at the last evaluation that evals.csv has whole, or None."""
    rates = {}
    with suppress(FileNotFoundError):
        for line in (run.dir / "evals.csv").read_text().split("\n")[1:-1]:  # a line without its end is still being written
            step, _, _, rate, _ = line.split(",")
            rates.setdefault(step, []).append(float(rate))
    return next((sum(x) / len(x) for x in reversed(rates.values()) if len(x) == run.num_tasks), None)


def status(run, slurm_states):
    saved = {"total_timesteps": 2_000_000 * run.num_tasks, "num_steps": 10_000}  # the scripts' defaults
    with suppress(FileNotFoundError):
        saved |= json.loads((run.dir / "args.json").read_text())
    saved |= run.given
    collect_steps = saved["num_steps"] * run.num_tasks
    steps, total = steps_of(run), saved["total_timesteps"] // collect_steps * collect_steps
    log, eta, slurm_state, started = "", None, None, run.dir.exists() or run.log.exists()
    with suppress(FileNotFoundError), open(run.log, "rb") as file:
        file.seek(max(0, os.path.getsize(run.log) - 10_000))
        log = file.read().decode(errors="replace").strip()
    with suppress(FileNotFoundError):
        slurm_state = slurm_states.get(run.job.read_text().strip())
    state = "done" if steps >= total > 0 else "queued" if slurm_state else "failed" if started else "waiting"
    if state == "failed" and log.split("\n")[-1].startswith(("stopped;", "ended by SIGTERM")):  # the script, or a job of its
        state = "stopped"
    rates = [int(r.replace(",", "")) for collect, r in PROGRESS.findall(log) if collect != "0"]  # 0: evaluation's time only
    rate = rates[-1] if rates and rates[-1] else None
    if is_running(run) or slurm_state == "RUNNING":
        state = "running"
        eta = max(0, (total - steps) / rate - (time.time() - os.path.getmtime(run.log))) if rate else None
    return Status(state, steps, total, success_of(run), rate, eta, log.split("\n")[-1])


def statuses(runs):
    """[(run, status)]. SLURM is asked too, as locks on a network file system may show on their own node only."""
    slurm_states = {}
    if any(run.job.exists() for run in runs) and shutil.which("squeue"):
        squeue = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True)
        check(squeue.returncode == 0, " ".join(squeue.stderr.split()))
        slurm_states = dict(line.split() for line in squeue.stdout.splitlines())
    return [(run, status(run, slurm_states)) for run in runs]


def duration(seconds):
    return "–" if seconds is None else f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def summary(table):
    """One line. Its ETA takes the runs to come to be as fast, and as many at a time, as those that run, without failed ones."""
    counts, rates = Counter(s.state for _, s in table), [s.rate for _, s in table if s.rate and s.state == "running"]
    rates = counts["running"] and (rates or [s.rate for _, s in table if s.rate])
    left = sum(s.total - s.steps for _, s in table if s.state not in ("done", "failed"))
    eta = max(left / (sum(rates) / len(rates) * counts["running"]), *(s.eta or 0 for _, s in table)) if rates else None
    states = [f"{counts[s]} {s}" for s in ("done", "running", "queued", "stopped", "failed", "waiting") if counts[s]]
    return f"{len(table)} runs: {', '.join(states)}; ETA {duration(eta)}"


def print_table(table):
    rows = [("run", "state", "steps", "success", "steps/s", "ETA", "")]
    for run, s in table:
        success, rate = "–" if s.success is None else f"{s.success:.3f}", f"{s.rate:,}" if s.rate else "–"
        last_line = s.last_line if s.state == "failed" else ""
        rows.append((run.dir.name, s.state, f"{s.steps:,}/{s.total:,}", success, rate, duration(s.eta), last_line))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{x:{side}{w}}" for x, side, w in zip(row, "<<>>>><", widths)).rstrip())
    print(summary(table), flush=True)


# Jobs.


class Job:
    """What submitit calls in a process of its own, and once more when SLURM has requeued it."""

    def __init__(self, command, log):
        self.command, self.log = command, log

    def __call__(self):
        stopping, on_slurm = [], os.environ["SUBMITIT_EXECUTOR"] == "slurm"  # which signals the script, too

        def stop(*_):
            stopping or stopping.append(on_slurm or process.terminate())
        with open(self.log, "a") as log, open(self.log) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            print(f"$ {shlex.join(self.command)}", file=log, flush=True)
            # SLURM's warning, SIGUSR2, comes to every process of a job, but the script is to wait for checkpoint()
            deaf = {"preexec_fn": lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN), "process_group": 0}  # nor for Ctrl-C
            self.process = process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **deaf)
            signal.signal(signal.SIGTERM, stop)
            code = process.wait()
            if code < 0:
                print(f"ended by {signal.Signals(-code).name}", file=log)
        if stopping and on_slurm:  # it cancels or preempts, and will end the job presently; a job that has ended by itself is
            time.sleep(3600)  # not requeued
        if code:
            raise subprocess.CalledProcessError(code, self.command)

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission
        self.process.terminate()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # a handler has interrupted wait(), whose lock is held
        return DelayedSubmission(Job(self.command, self.log))


def executor_of(args, **options):
    import submitit  # here, as --dry-run and --status do without it
    args.dir.mkdir(parents=True, exist_ok=True)
    folder = args.dir / "submitit" / time.strftime("%Y%m%d-%H%M%S")  # a new one, as local jobs are named by process numbers
    return submitit.AutoExecutor(folder, cluster=args.engine, **options)


def on_gpu(command, gpus, slot):
    return ["env", f"CUDA_VISIBLE_DEVICES={gpus[slot % len(gpus)]}", *command] if gpus else command


def run_here(args, runs, gpus):
    """Keeps args.jobs runs going until each is done or has failed once more than args.retries. Returns whether all are done."""
    executor = executor_of(args)
    executor.update_parameters(timeout_min=10 * 365 * 24 * 60)  # submitit's is 5
    table = statuses(runs)
    check(not any(s.state == "queued" for _, s in table), "some of the runs are queued on SLURM: scancel these jobs first")
    waiting = [run for run, s in table if s.state != "done"]
    going, starts, reported = {}, Counter(), time.time()  # {slot: (run, job)}; job None: someone else has started the run

    def say(text):
        print(time.strftime("%H:%M:%S"), text, flush=True)

    def stop(*_):
        sys.exit(f"\nstopped; continue with: {shlex.join(['python', *sys.argv])}")
    for number in signal.SIGINT, signal.SIGHUP, signal.SIGTERM:  # Ctrl-C, a closed terminal, a scheduler
        signal.signal(number, stop)
    try:
        while waiting or going:
            for slot, (run, job) in [*going.items()]:
                if job.done() if job else not is_running(run):
                    del going[slot]
                    [(_, s)] = statuses([run])
                    again = s.state != "done" and starts[run.dir] <= args.retries
                    waiting[:0] = [run] if again else []
                    say(f"{run.dir.name} {'is done' if s.state == 'done' else f'has failed: {s.last_line}'}")
                    reported = 0
            for slot in [slot for slot in range(args.jobs) if slot not in going][: len(waiting)]:
                # blocked, and so in the job for good: these come to all processes, and this one then ends the jobs in order
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
                run, job = waiting.pop(0), None
                if not is_running(run):
                    starts[run.dir] += 1
                    job = executor.submit(Job(on_gpu(run.command, gpus, slot), run.log))
                going[slot] = run, job
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
                say(f"{run.dir.name} is {'started' if job else 'running already'}")
            if time.time() > reported + REPORT_SECONDS:
                busy = {run.dir for run, _ in going.values()}  # their files do not say so yet if they have just been started
                say(summary([(run, s._replace(state="running") if run.dir in busy else s) for run, s in statuses(runs)]))
                reported = time.time()
            time.sleep(0.5)
    finally:
        while own := [job for _, job in going.values() if job and not job.done()]:
            for job in own:
                os.kill(int(job.job_id), signal.SIGTERM)  # and again: submitit passes it on, but ignores it while it starts
            time.sleep(0.5)
    table = statuses(runs)
    print_table(table)
    return all(s.state == "done" for _, s in table)


def submit(args, runs):
    executor = executor_of(args, slurm_max_num_timeout=10_000)
    executor.update_parameters(name="sweep", timeout_min=args.slurm_timeout_min, cpus_per_task=args.slurm_cpus,
                               slurm_array_parallelism=args.jobs or len(runs),
                               slurm_additional_parameters=dict(x.split("=", 1) for x in args.slurm_options))  # fmt: skip
    try:
        with executor.batch():
            jobs = [executor.submit(Job(run.command, run.log)) for run in runs]
    except RuntimeError:  # submitit's, and it has printed what sbatch said
        check(False, "sbatch has refused the jobs")
    for run, job in zip(runs, jobs):
        run.job.write_text(f"{job.job_id}\n")
    array = jobs[0].job_id.split("_")[0]
    print(f"submitted {len(jobs)} runs as job {array}; scancel {array} ends them; --status, before any --, shows how they go")


def gpus_here():
    """What CUDA_VISIBLE_DEVICES is to be for one run each, [] without GPUs."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [x for x in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if x]
    with suppress(OSError):  # no such program
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        return [str(i) for i in range(len(re.findall("^GPU ", listed, re.MULTILINE)))]
    return []


def main():
    args, flags = parse_args()
    here, gpus, cores = args.engine == "local", [], args.slurm_cpus
    if here:
        gpus = gpus_here()
        args.jobs = args.jobs or len(gpus) or 1
        cores = max(1, (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()) // args.jobs)
    runs = grid(args, flags, cores)
    if args.status:
        return print_table(statuses(runs))
    to_start = [run for run, s in statuses(runs) if s.state in ("stopped", "failed", "waiting")]
    if args.dry_run:
        for i, run in enumerate(to_start):
            print(shlex.join(on_gpu(run.command, gpus, i % (args.jobs or 1))))
    elif here:
        sys.exit(0 if run_here(args, runs, gpus) else 1)
    elif to_start:
        submit(args, to_start)
    else:
        print(summary(statuses(runs)))


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        check(False, str(error))
