"""docs/choices.md: what the paper leaves open and our choice could matter for, measured.

    python paper/choices.py results/mt10 --choices results/choices

RUNS are runs with the defaults, of the scripts that a choice is measured on. Those with another choice are in the folder of
--choices, named CHOICE__SCRIPT__SEED. Compares them at equal steps and writes choices.png and the page; what choices_note.md in
that folder says about the numbers goes into the page.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import runs as r
import tyro

CHOICES: dict[str, tuple[str, str, dict[str, str]]] = {  # title: (script, the default, {CHOICE: what it is})
    "log-std start, TOPPO": ("toppo_mt50", "0", {"log_std_-0.5": "-0.5", "log_std_-1.0": "-1"}),
    "last value of an episode, TOPPO": ("toppo_mt50", "bootstrapped", {"no_bootstrap": "taken as 0"}),
    "value clip, TOPPO": ("toppo_mt50", "on", {"no_clip_vloss": "off"}),
    "value clip, vanilla": ("vanilla_mtppo", "on", {"no_clip_vloss": "off"}),
    "PCGrad, TOPPO": ("toppo_mt50", "mean", {"pcgrad_sum": "sum"}),
    # Not open, but changed to find out what PopArt's part is (Table D.1 in docs/results.md).
    "value clip, +LN-c +FG-c": ("ln_fairgrad", "on", {"no_clip_vloss": "off"}),
    "Adam's ε, +LN-c +PopArt": ("ln_popart", "1e-5", {"adam_eps_1e-8": "1e-8"}),
}
INTRODUCTION = """Made by `python paper/choices.py`. Each choice that the paper leaves open and that could matter, against the
default, on MT10 with V2 rewards, at a small part of the paper's 20 M steps; below them, changes to what the paper does fix,
made to find out what PopArt's part is. Success in percent, mean over the seeds and, in brackets, each seed's; training success is
with exploration noise. In the figure, the line is training success, a dot is an evaluation."""


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories with the default choices, or folders of them"""
    choices: Path = Path("results/choices")
    """folder of the runs with other choices, and what the figure goes to"""
    page: Path = Path("docs/choices.md")
    """the page"""


def members(folder: Path, defaults: list[r.Run], script: str, default: str, others: dict[str, str]) -> dict[str, list[r.Run]]:
    """{what the choice is: its runs, by seed}, the default first; without those that have not been made."""
    found = {f"{default} (default)": [run for run in defaults if run.script == script]}
    for choice, label in others.items():
        paths = sorted(path.parent for path in folder.glob(f"{choice}__{script}__*/args.json"))
        found[label] = sorted([r.read_run(path) for path in paths], key=lambda run: run.seed)
    return {label: runs for label, runs in found.items() if runs}


def scores(run: r.Run, step: int) -> list[float]:
    """Evaluated success and that of the three worst tasks at step, then training success and explained variance up to there."""
    rates = run.success[list(run.steps).index(step)]
    values = [r.scalars(run.path)[tag] for tag in ("train_success/mean", "explained_variance/mean")]
    return [100 * rates.mean(), 100 * r.worst(rates, 3), *(100 * v[s <= step][-1] for s, v in values)]


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    args.choices.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    try:
        defaults = r.load_runs(args.runs)
        given = {title: members(args.choices, defaults, *choice) for title, choice in CHOICES.items()}
        made = {title: found for title, found in given.items() if len(found) > 1}
        if not made:
            raise r.Missing(f"{args.choices}: no run named CHOICE__SCRIPT__SEED, such as no_clip_vloss__toppo_mt50__1")
        figure, axes = r.tiles(len(made), columns=4, width=3.2, height=3.1)
        top = 0.0
        for axis, (title, found) in zip(axes, made.items()):
            every = [run for runs in found.values() for run in runs]
            step = max(set.intersection(*(set(run.steps.tolist()) for run in every)))
            for i, (label, runs) in enumerate(found.items()):
                color = [*r.COLORS.values()][i]
                for run in runs:
                    at, (steps, trained) = run.steps[run.steps <= step], r.scalars(run.path)["train_success/mean"]
                    evaluated, trained = run.success.mean(1)[: len(at)], trained[steps <= step]
                    axis.plot(at / 1e6, evaluated, "o", color=color, markersize=5, alpha=0.8)
                    axis.plot(steps[steps <= step] / 1e6, trained, color=color, label=label if run is runs[0] else None)
                    top = max(top, *evaluated, *trained)
                table = np.array([scores(run, step) for run in runs])  # [n, 4]
                seeds = ", ".join(str(run.seed) for run in runs)
                each = [f"{x.mean():.1f}" + (f" ({', '.join(f'{y:.1f}' for y in x)})" if len(x) > 1 else "") for x in table.T]
                rows.append([title if i == 0 else "", label, seeds, r.millions(step), *each])
            axis.set(title=title, xlabel="million environment steps", ylabel="success")
            axis.legend(fontsize=8, loc="upper left")
    except r.Missing as reason:
        print(f"choices.py: error: {reason}", file=sys.stderr)
        sys.exit(2)
    for axis in axes:
        axis.set_ylim(-0.02, 1.05 * top)  # the same for all, so that they compare by eye
    figure.savefig(args.choices / "choices.png", dpi=110)
    header = ["choice", "", "seeds", "at", "success", "three worst tasks", "training success", "explained variance"]
    link = Path(os.path.relpath(args.choices, args.page.parent)).as_posix()
    note = (args.choices / "choices_note.md").read_text().splitlines() if (args.choices / "choices_note.md").exists() else []
    lines = ["# Choices that the paper leaves open", "", INTRODUCTION, "", f"![curves]({link}/choices.png)", ""]
    lines += r.table(header, rows)
    absent = [title for title in given if title not in made]
    lines += [f"Not run yet: {'; '.join(absent)}.", ""] if absent else []
    args.page.write_text("\n".join([*lines, *note]).rstrip() + "\n")
    print(f"wrote {args.page} and {args.choices}/choices.png")


if __name__ == "__main__":
    main()
