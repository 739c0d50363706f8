"""One whole collect of vanilla_mtppo.py and toppo_mt50.py, as processes that a person would start: seconds and peak memory.

    python benchmarks/end_to_end.py                        MT10; prints and writes results/bench_end_to_end.md
    python benchmarks/end_to_end.py --benchmark MT10 MT50  MT50 too, which takes half an hour a repetition on two cores
    python benchmarks/end_to_end.py --steps 2000           a shorter collect
    python benchmarks/end_to_end.py --no-write             prints only

The two take turns. Seconds come from the speed/ scalars that the scripts log, which leave out start and evaluations (one episode
of each task before and after). Memory is the main process's high-water mark. Other flags, such as --num-workers 8, go to both.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from metaworld.env_dict import MT10_V3, MT50_V3
from report import header, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "results" / "bench_end_to_end.md"
SCRIPTS = "vanilla_mtppo.py", "toppo_mt50.py"
NUM_TASKS = {"MT10": len(MT10_V3), "MT50": len(MT50_V3)}
PACKAGES = "torch", "numpy", "metaworld", "mujoco"


def run(script, flags, run_dir):
    """Returns the seconds of rollout, update and whole collect, and the main process's peak memory in MB."""
    process = subprocess.Popen([sys.executable, script, *flags, "--run-dir", run_dir], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:  # rusage counts the workers too; VmHWM is this process's, and gone with it
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), peak)
        except OSError:
            pass  # it has just ended
        time.sleep(0.1)
    assert process.returncode == 0, f"{script} failed"
    events = EventAccumulator(run_dir)
    events.Reload()
    [steps] = {e.step for e in events.Scalars("speed/all_steps_per_second")}
    return [*(steps / events.Scalars(f"speed/{part}_steps_per_second")[0].value for part in ("rollout", "update", "all")), peak]


def table(title, num_tasks, tasks, args, further):
    """tasks: the scripts' flag for them. Returns lines."""
    total = args.steps * num_tasks
    flags = [*tasks, "--num-steps", args.steps, "--total-timesteps", total, "--torch-threads", args.threads,
             "--eval-episodes", 1, "--eval-interval", 10**9, "--cuda" if args.device == "cuda" else "--no-cuda"]  # fmt: skip
    runs: dict[str, list[list[float]]] = {script: [] for script in SCRIPTS}
    for repetition in range(args.repetitions):
        for script in SCRIPTS:
            with tempfile.TemporaryDirectory() as run_dir:
                runs[script].append(run(script, [*map(str, flags), *further], run_dir))
            rollout, update, whole, memory = runs[script][-1]
            print(f"{title}, {repetition + 1}/{args.repetitions}, {script}: rollout {rollout:.1f} s, update {update:.1f} s, "
                  f"collect {whole:.1f} s, {memory:,.0f} MB", file=sys.stderr, flush=True)  # fmt: skip
    results = {script: np.array(x) for script, x in runs.items()}  # [repetitions, 4]
    lines = [f"## {title}: {total:,} steps", "", "| | rollout, s | update, s | whole collect, s | peak memory, MB |",
             "|---|---|---|---|---|"]  # fmt: skip
    for script in SCRIPTS:
        rollout, update, whole, memory = np.median(results[script], axis=0)
        lines.append(f"| {script} | {rollout:.1f} | {update:.1f} | {whole:.1f} | {memory:,.0f} |")
    ratios = np.median(results["toppo_mt50.py"] / results["vanilla_mtppo.py"], axis=0)
    return [*lines, f"| TOPPO to vanilla | {' | '.join(f'{r:.2f}×' for r in ratios)} |", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", nargs="+", choices=["MT10", "MT50"], default=["MT10"])
    parser.add_argument("--tasks", nargs="+", help="tasks of Meta-World in place of a benchmark")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="the scripts' --torch-threads; 0: PyTorch's default")
    parser.add_argument("--steps", type=int, default=10_000, help="of each task in the collect (default 10,000)")
    parser.add_argument("--out", type=Path, default=REPORT, help="the Markdown file to write")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args, further = parser.parse_known_args()
    lines = [
        *header("A whole collect", PACKAGES, args.threads, args.device),
        f"A rollout and its update, 16 passes of 32 minibatches unless the command says otherwise, in {args.repetitions} runs of",
        "each script, which take turns: medians, ratios are medians of the runs' ratios. Memory is the main process's peak.",
        "The target for the whole collect of TOPPO is at most 1.35 times vanilla's.",
        "",
    ]
    if args.tasks:
        lines += table(" ".join(args.tasks), len(args.tasks), ["--tasks", *args.tasks], args, further)
    for benchmark in [] if args.tasks else args.benchmark:
        lines += table(benchmark, NUM_TASKS[benchmark], ["--benchmark", benchmark], args, further)
    write(lines, args)


if __name__ == "__main__":
    main()
