"""Learning curves of some runs side by side: success, its tail and the critic's explained variance.

    python paper/learning_curves.py runs/A runs/B --out results/mt10

Writes curves.png, and for each run NAME_evals.csv, the run's own evals.csv, and NAME_scalars.csv
with step, tag and value of what was logged once per collect, means over tasks. NAME is the script
that made the run, with a number where there are several.
"""

import csv
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import runs as r
import tyro

TAGS = [
    "explained_variance/mean",
    "train_success/mean",
    "train_return/mean",
    "losses/policy",
    "losses/value",
    "losses/entropy",
    "losses/approx_kl",
    "losses/ratio_clip_fraction",
    "losses/value_clip_fraction",
    "gradients/actor_log10_norm_spread",
    "gradients/critic_log10_norm_spread",
    "gradients/actor_mean_cosine",
    "gradients/critic_mean_cosine",
    "gradients/actor_top1_share",
    "gradients/critic_top1_share",
    "gradients/actor_combined_norm",
    "gradients/critic_combined_norm",
    "speed/rollout_steps_per_second",
    "speed/update_steps_per_second",
]
TITLES = [
    "success, evaluated, % (dotted: worst {k})",
    "success while training, %",
    "explained variance, mean over tasks, %",
]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories"""
    out: Path
    """folder to write to"""


def success_by_step(evals_csv):
    """Returns {step: [success rate of each task]}."""
    rates = defaultdict(list)
    with open(evals_csv) as file:
        for row in csv.DictReader(file):
            rates[int(row["step"])].append(float(row["success_rate"]))
    return rates


def mean(values):
    return sum(values) / len(values)


def tail(success):
    """k of the worst-k for the runs' number of tasks."""
    return r.tail_size(len(next(iter(success.values()))))


def write_scalars(path, logged):
    rows = [
        (int(step), tag, f"{value:.6g}")
        for tag in TAGS
        if tag in logged
        for step, value in zip(*logged[tag])
    ]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("step", "tag", "value"), *sorted(rows)])


def plot(axes, name, color, success, logged):
    steps = [step / 1e6 for step in success]
    means = [100 * mean(rates) for rates in success.values()]
    worst = [100 * mean(sorted(rates)[: tail(success)]) for rates in success.values()]
    (line,) = axes[0].plot(steps, means, marker="o", label=name, color=color)
    axes[0].plot(steps, worst, marker=".", linestyle=":", color=line.get_color())
    for axis, tag in zip(axes[1:], ("train_success/mean", "explained_variance/mean")):
        if tag in logged:
            steps, values = logged[tag]
            axis.plot(steps / 1e6, 100 * values, marker=".", label=name, color=line.get_color())


def main():
    args = tyro.cli(Args, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    scripts = [json.loads((run / "args.json").read_text())["script"] for run in args.runs]
    figure, axes = r.plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for i, (run, name) in enumerate(zip(args.runs, scripts)):
        if scripts.count(name) > 1:
            name += f"_{scripts[: i + 1].count(name)}"
        logged = r.scalars(run)
        shutil.copy(run / "evals.csv", args.out / f"{name}_evals.csv")
        write_scalars(args.out / f"{name}_scalars.csv", logged)
        success = success_by_step(run / "evals.csv")
        plot(axes, name, r.PALETTE[i % len(r.PALETTE)], success, logged)
    for axis, title in zip(axes, TITLES):
        title = title.format(k=tail(success))
        axis.set(title=title, xlabel="million environment steps", ylim=(-3, 103))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(args.out / "curves.png", dpi=110)
    print(f"wrote {args.out}/curves.png and the csv files of {len(args.runs)} runs")


if __name__ == "__main__":
    main()
