"""Learning curves of some runs side by side: success, its tail and the critic's explained variance against environment steps.

    python paper/learning_curves.py runs/A runs/B --out results/mt10

Writes curves.png, and for each run NAME_evals.csv (the run's own evals.csv) and NAME_scalars.csv (step, tag, value: means over
tasks of what was logged once per collect). NAME is the script that made the run, with a number where there are several.
"""

import csv
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TAGS = ["explained_variance/mean", "train_success/mean", "train_return/mean", "losses/policy", "losses/value", "losses/entropy",
        "losses/approx_kl", "losses/ratio_clip_fraction", "losses/value_clip_fraction", "gradients/actor_log10_norm_spread",
        "gradients/critic_log10_norm_spread", "gradients/actor_mean_cosine", "gradients/critic_mean_cosine",
        "gradients/actor_top1_share", "gradients/critic_top1_share", "gradients/norm_ratio", "speed/rollout_steps_per_second",
        "speed/update_steps_per_second"]  # fmt: skip


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


def scalars(run_dir):
    """Returns {tag: [(step, value)]} of the TAGS that the run has."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in TAGS if tag in events.Tags()["scalars"]}


def main():
    args = tyro.cli(Args, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    scripts = [json.loads((run / "args.json").read_text())["script"] for run in args.runs]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for i, (run, script) in enumerate(zip(args.runs, scripts)):
        name = script if scripts.count(script) == 1 else f"{script}_{scripts[: i + 1].count(script)}"
        shutil.copy(run / "evals.csv", args.out / f"{name}_evals.csv")
        success, logged = success_by_step(run / "evals.csv"), scalars(run)
        with open(args.out / f"{name}_scalars.csv", "w", newline="") as file:
            rows = sorted((step, tag, f"{value:.6g}") for tag, series in logged.items() for step, value in series)
            csv.writer(file).writerows([("step", "tag", "value"), *rows])
        steps = [step / 1e6 for step in success]
        (line,) = axes[0].plot(steps, [sum(r) / len(r) for r in success.values()], marker="o", label=name)
        worst = [sum(sorted(r)[:3]) / len(sorted(r)[:3]) for r in success.values()]
        axes[0].plot(steps, worst, marker=".", linestyle=":", color=line.get_color())
        for axis, tag in (axes[1], "train_success/mean"), (axes[2], "explained_variance/mean"):
            axis.plot([step / 1e6 for step, _ in logged[tag]], [value for _, value in logged[tag]], marker=".", label=name)
    titles = "success, evaluated (dotted: three worst tasks)", "success while training", "explained variance, mean over tasks"
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="million environment steps", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(args.out / "curves.png", dpi=110)
    print(f"wrote {args.out}/curves.png and the csv files of {len(args.runs)} runs")


if __name__ == "__main__":
    main()
