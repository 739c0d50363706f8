"""One whole collect of vanilla_mtppo.py and toppo_mt50.py, as processes that a person would start.

    python benchmarks/end_to_end.py                        # MT10
    python benchmarks/end_to_end.py --benchmark MT10 MT50  # MT50 takes half an hour a repetition
    python benchmarks/end_to_end.py --steps 2000           # a shorter collect
    python benchmarks/end_to_end.py --no-write             # prints only

Prints and writes results/bench_end_to_end.md: seconds and peak memory. The two scripts take turns.
Seconds come from the speed/ scalars that they log, which leave out start and evaluations (one
episode of each task before and after). Memory is the main process's high-water mark. Other flags,
such as --num-workers 8, go to both.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from metaworld.env_dict import MT10_V3, MT50_V3
from report import ROOT, header, parser, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPTS = ["vanilla_mtppo.py", "toppo_mt50.py"]
NUM_TASKS = {"MT10": len(MT10_V3), "MT50": len(MT50_V3)}
PACKAGES = ["torch", "numpy", "metaworld", "mujoco"]


def peak_memory(process):
    """The main process's peak in MB, when it has ended.

    rusage counts the workers too; VmHWM is this process's, and gone with it.
    """
    peak = 0.0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break  # it has just ended
        peak = next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM")), peak)
        time.sleep(0.1)
    assert process.wait() == 0, f"{process.args} failed"
    return peak


def run(script, flags, run_dir):
    """Returns the seconds of rollout, update and whole collect, and the peak memory in MB."""
    command = [sys.executable, script, *flags, "--run-dir", run_dir]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = peak_memory(process)
    events = EventAccumulator(run_dir)
    events.Reload()
    seconds = []
    for part in ("rollout", "update"):
        [event] = events.Scalars(f"speed/{part}_steps_per_second")
        seconds.append(event.step / event.value)
    return [*seconds, sum(seconds), peak]


def table(title, num_tasks, tasks, args, further):
    """tasks: the scripts' flags for them. Returns lines."""
    total = args.steps * num_tasks
    flags = {
        "--num-steps": args.steps,
        "--total-timesteps": total,
        "--torch-threads": args.threads,
        "--eval-episodes": 1,
        "--eval-interval": 10**9,
    }
    words = [str(word) for flag in flags.items() for word in flag]
    words += [*tasks, "--cuda" if args.device == "cuda" else "--no-cuda", *further]
    runs: dict[str, list[list[float]]] = {script: [] for script in SCRIPTS}
    for repetition in range(args.repetitions):
        for script in SCRIPTS:
            with tempfile.TemporaryDirectory() as run_dir:
                runs[script].append(run(script, words, run_dir))
            rollout, update, whole, memory = runs[script][-1]
            print(
                f"{title}, {repetition + 1}/{args.repetitions}, {script}: rollout {rollout:.1f} s, "
                f"update {update:.1f} s, collect {whole:.1f} s, {memory:,.0f} MB",
                file=sys.stderr,
                flush=True,
            )
    results = {script: np.array(x) for script, x in runs.items()}  # [repetitions, 4]
    lines = [
        f"## {title}: {total:,} steps",
        "",
        "| | rollout, s | update, s | whole collect, s | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for script in SCRIPTS:
        rollout, update, whole, memory = np.median(results[script], axis=0)
        lines.append(f"| {script} | {rollout:.1f} | {update:.1f} | {whole:.1f} | {memory:,.0f} |")
    ratios = np.median(results["toppo_mt50.py"] / results["vanilla_mtppo.py"], axis=0)
    return [*lines, f"| TOPPO to vanilla | {' | '.join(f'{r:.2f}×' for r in ratios)} |", ""]


def main():
    flags = parser(__doc__, "bench_end_to_end.md", repetitions=3)
    flags.set_defaults(benchmark=["MT10"])
    flags.add_argument("--tasks", nargs="+", help="tasks of Meta-World in place of a benchmark")
    text = "of each task in the collect (default 10,000)"
    flags.add_argument("--steps", type=int, default=10_000, help=text)
    args, further = flags.parse_known_args()
    lines = [
        *header("A whole collect", PACKAGES, args.threads, args.device),
        "A rollout and its update, 16 passes of 32 minibatches unless the command says otherwise,",
        f"in {args.repetitions} runs of each script, which take turns: medians, ratios are medians",
        "of the runs' ratios. Memory is the main process's peak. The target for the whole collect",
        "of TOPPO is at most 1.35 times vanilla's.",
        "",
    ]
    if args.tasks:
        tasks = ["--tasks", *args.tasks]
        lines += table(" ".join(args.tasks), len(args.tasks), tasks, args, further)
    for benchmark in [] if args.tasks else args.benchmark:
        tasks = ["--benchmark", benchmark]
        lines += table(benchmark, NUM_TASKS[benchmark], tasks, args, further)
    write(lines, args)


if __name__ == "__main__":
    main()
