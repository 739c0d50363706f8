"""A run in small files, to be committed.

    python paper/compact.py runs/A runs/B --out results/mt10
    python paper/compact.py runs/A --out results/policies --actor

Writes OUT/A/ with args.json without the run's own path, evals.csv, scalars.csv with step, tag and
value of all that TensorBoard has, and, if the run has gradient dumps, gradients/collect_N.npz, in
which a Gram matrix in fp64 stands for each side's gradients. With --actor also actor.pt, the
weights that enjoy.py plays. The scripts of this folder read OUT/A like the run itself.
"""

import csv
import json
import shutil
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
    actor: bool = False
    """write actor.pt too, from the run's last checkpoint"""


def write_scalars(run, target):
    rows = [
        (step, tag, f"{value:.7g}")
        for tag, series in r.scalars(run).items()
        for step, value in zip(*series)
    ]
    with open(target / "scalars.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "tag", "value"), *sorted(rows)])


def write_dumps(run, target):
    for file in sorted(run.glob("gradients/collect_*.npz")):
        with np.load(file, allow_pickle=False) as dump:
            arrays = {name: dump[name] for name in dump}
        for side in ("actor", "critic"):
            if f"{side}_gradients" in arrays:
                arrays[f"{side}_gram"] = r.gram(arrays.pop(f"{side}_gradients"))
        (target / "gradients").mkdir(exist_ok=True)
        np.savez_compressed(target / "gradients" / file.name, **arrays)


def write_actor(run, target):
    """The actor's weights, by their names in agent.actor, and the log-std, with the run's flags."""
    import torch  # slow, and wanted here only

    try:
        checkpoint = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
        agent = checkpoint["agent"]
        kept = {
            "script": checkpoint["script"],
            "args": checkpoint["args"],
            "actor": {
                name.removeprefix("actor."): weight
                for name, weight in agent.items()
                if name.startswith("actor.")
            },
            "log_std": agent["log_std"],
        }
    except Exception as error:  # torch.load raises many kinds for files that are not its own
        raise r.Missing(f"{run}: --actor wants a whole checkpoint.pt ({error!r})") from error
    torch.save(kept, target / "actor.pt")


def compact(run, target, actor):
    """Writes the run directory run's small files to target."""
    target.mkdir(parents=True, exist_ok=True)
    args = json.loads((run / "args.json").read_text())
    args |= {name: None for name in ("run_dir", "resume") if name in args}
    (target / "args.json").write_text(json.dumps(args, indent=2) + "\n")
    shutil.copy(run / "evals.csv", target / "evals.csv")
    write_scalars(run, target)
    write_dumps(run, target)
    if actor:
        write_actor(run, target)


def check(runs, i, out):
    """Refuses to write over a run. runs: all that are given; i: which of them is asked about."""
    run = runs[i]
    names = [other.resolve().name for other in runs]
    if names[i] in names[:i]:
        twin = "another of the runs has this name and would be written over"
        raise r.Missing(f"{run}: {twin}; give them separately")
    if (out / names[i]).resolve() in [other.resolve() for other in runs]:
        twin = f"would be written over a run of the same name in {out}"
        raise r.Missing(f"{run}: {twin}; choose another --out")
    r.read_run(run)


def main():
    args = tyro.cli(Args, description=__doc__)
    try:
        runs = r.run_directories(args.runs)
        if not runs:
            command = "python paper/compact.py runs/NAME --out results/FOLDER"
            raise r.Missing(f"no runs given; expected run directories: {command}")
        for i in range(len(runs)):
            check(runs, i, args.out)
        for run in runs:
            target = args.out / run.resolve().name
            compact(run, target, args.actor)
            print(f"wrote {target}", flush=True)
    except r.Missing as reason:
        r.fail(reason)


if __name__ == "__main__":
    main()
