"""A run in small files, to be committed.

    python tools/compact.py runs/NAME --out results/mt50

Writes OUT/NAME with the flags, evaluations, logged numbers and gradient dumps. paper/ reads it
like the run itself. With --actor also the weights that enjoy.py plays.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "paper"))
from curves import scalars  # noqa: E402
from tables import fail, run_directories  # noqa: E402


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, or folders with some anywhere inside"""
    out: Path
    """folder that a folder for each run goes to"""
    actor: bool = False
    """write actor.pt, too, from the run's last checkpoint"""


def compact(run, target):
    target.mkdir(parents=True, exist_ok=True)
    for file in run.glob("args*.json"):
        args = json.loads(file.read_text())
        args.pop("run_dir", None)  # it names a folder of this machine
        text = json.dumps(args, indent=2, ensure_ascii=False)
        (target / file.name).write_text(text + "\n")
    shutil.copy(run / "evals.csv", target)
    table = scalars(run).sort_values(["step", "tag"])
    table.to_csv(target / "scalars.csv", index=False, float_format="%.7g")

    if (run / "gradients").exists():
        shutil.copytree(run / "gradients", target / "gradients", dirs_exist_ok=True)


def write_actor(run, target):
    try:
        checkpoint = torch.load(run / "checkpoint.pt", "cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        fail(f"{run}: --actor needs a whole checkpoint.pt: {error!r}")
    agent = checkpoint["agent"]
    names = [name for name in agent if name.startswith("actor.")]
    kept = {
        "script": checkpoint["script"],
        "args": checkpoint["args"] | {"run_dir": None},
        "actor": {name.removeprefix("actor."): agent[name] for name in names},
        "log_std": agent["log_std"],
    }
    torch.save(kept, target / "actor.pt")


def main():
    args = tyro.cli(Args, description=__doc__)
    for run in run_directories(args.runs):
        target = args.out / run.resolve().name
        if target.exists():
            fail(f"{target} is there already; remove it first, or choose another --out")
        compact(run, target)
        if args.actor:
            write_actor(run, target)
        print(f"wrote {target}")


if __name__ == "__main__":
    main()
