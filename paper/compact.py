"""A run in small files, to be committed: its arguments, evaluations and scalars, and the Gram matrices of its gradient dumps.

    python paper/compact.py runs/A runs/B --out results/mt10

Writes OUT/A/ with args.json (without the run's own paths), evals.csv, scalars.csv (step, tag, value: all that TensorBoard has)
and, if the run has gradient dumps, gradients/collect_N.npz, in which a Gram matrix in fp64 stands for each side's gradients. The
scripts of this folder read OUT/A like the run itself.
"""

import csv
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import runs as r
import tyro


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, or folders of them"""
    out: Path
    """folder that a folder for each run goes to"""


def compact(run, target):
    """Writes the run directory run's small files to target."""
    target.mkdir(parents=True, exist_ok=True)
    args = json.loads((run / "args.json").read_text()) | {"run_dir": None, "resume": None}
    (target / "args.json").write_text(json.dumps(args, indent=2) + "\n")
    shutil.copy(run / "evals.csv", target / "evals.csv")
    rows = [(step, tag, f"{value:.7g}") for tag, series in r.scalars(run).items() for step, value in zip(*series)]
    with open(target / "scalars.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "tag", "value"), *sorted(rows)])
    for file in sorted(run.glob("gradients/collect_*.npz")):
        with np.load(file, allow_pickle=False) as dump:
            arrays = {name: dump[name] for name in dump}
        for side in "actor", "critic":
            if f"{side}_gradients" in arrays:
                arrays[f"{side}_gram"] = r.gram(arrays.pop(f"{side}_gradients"))
        (target / "gradients").mkdir(exist_ok=True)
        np.savez_compressed(target / "gradients" / file.name, **arrays)


def main():
    args = tyro.cli(Args, description=__doc__)
    try:
        runs = r.run_directories(args.runs)
        for i, run in enumerate(runs):
            target = args.out / run.resolve().name
            if target.resolve() in [other.resolve() for other in runs]:
                raise r.Missing(f"{run}: would be written over a run of the same name in {args.out}; choose another --out")
            if run.resolve().name in [other.resolve().name for other in runs[:i]]:
                raise r.Missing(f"{run}: another of the runs has this name and would be written over; give them separately")
            r.read_run(run)
            compact(run, target)
            print(f"wrote {target}")
        if not runs:
            raise r.Missing("no runs given; expected run directories: python paper/compact.py runs/NAME --out results/FOLDER")
    except r.Missing as reason:
        print(f"compact.py: error: {reason}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
