"""Numbers that the paper publishes, as far as its text gives them, for the column beside ours.

The text that this was written from had lost the cells of most tables: what is absent here is in the
paper's tables, and can be added below. The paper's Figure 1 is in published_figure1.csv: values
that are printed in the picture are exact, the others are read off it.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Figure 1: MT50, V2 rewards, mean success. Steps are in millions, success is in percent.
SOURCE = """\
The paper's values are of its Figure 1 (MT50, V2, 10 seeds; the baselines 8 seeds, final scores at
100 M steps, from Cho et al., ICML 2025), in `paper/published_figure1.csv`. Values with ≈ are read
off the picture, to about 0.5 points; the others are printed in it."""
# Half the width of the paper's band over seeds before 10 M steps, about, read off the same picture
BAND = 5
BAND_UNTIL = 10


class Point(NamedTuple):
    step: float
    success: float
    exact: bool  # printed in the picture, else read off it


class Baseline(NamedTuple):
    name: str
    final: float  # at 100 M steps, mean over 8 seeds
    std: float
    exact: bool
    crossing: float | None  # where the picture says that TOPPO has got there


def figure_1_rows(kind: str) -> list[dict[str, str]]:
    """The rows of published_figure1.csv of a kind: curve, crossing or baseline."""
    text = Path(__file__).with_name("published_figure1.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [row for row in csv.DictReader(lines) if row["kind"] == kind]


def figure_1_curve(method: str) -> list[Point]:
    return [
        Point(float(row["step_m"]), float(row["success"]), row["exact"] == "yes")
        for row in figure_1_rows("curve")
        if row["method"] == method
    ]


def figure_1_baselines() -> list[Baseline]:
    """The published baselines, the weakest first."""
    crossings = {row["method"]: float(row["step_m"]) for row in figure_1_rows("crossing")}
    found = [
        Baseline(
            name=row["method"],
            final=float(row["success"]),
            std=float(row["std"]),
            exact=row["exact"] == "yes",
            crossing=crossings.get(row["method"]),
        )
        for row in figure_1_rows("baseline")
    ]
    return sorted(found, key=lambda baseline: baseline.final)


CURVES = {
    "toppo_mt50": figure_1_curve("TOPPO"),
    "vanilla_mtppo": figure_1_curve("Vanilla MT-PPO"),
}
BASELINES = figure_1_baselines()


def papers_success(script: str, step: float) -> float | None:
    """The paper's curve at a step in millions, linear between the steps that could be read off.

    There is none before the first of them, where the curve rises most, nor after the last.
    """
    steps, success, _ = zip(*CURVES[script])
    if not steps[0] <= step <= steps[-1]:
        return None
    return float(np.interp(step, steps, success))


def first_crossing(
    steps: Sequence[float], success: Sequence[float], level: float
) -> tuple[int, float] | None:
    """Where a curve first reaches a level: the point's index, and the step by interpolation.

    The step is on the line from the point before. None if no point reaches the level.
    """
    reached = [i for i, value in enumerate(success) if value >= level]
    if not reached:
        return None
    i = reached[0]
    if i == 0:
        return 0, steps[0]
    share = (level - success[i - 1]) / (success[i] - success[i - 1])
    return i, steps[i - 1] + share * (steps[i] - steps[i - 1])


# Success in percent, 10 seeds: the mean at the final checkpoint on V2, after 20 M steps on MT10 and
# 100 M on MT50, and the IQM on V1.
FINAL = {("toppo_mt50", "MT10", "v2"): 97.2, ("toppo_mt50", "MT50", "v2"): 90.9}
IQM = {("toppo_mt50", "MT50", "v1"): 79.3}
BUDGET = {"MT10": 20, "MT50": 100}  # million steps
ABSENT = (
    "A dash in a column of the paper's: it is in the paper's table, but not among the values that "
    "`paper/published.py` has."
)

# Table B.2, and Tables 2 and 3 for the rungs between: parameters on MT10 and MT50 in thousands.
PARAMETERS = {
    "vanilla_mtppo": (684, 716),
    "ln": (685, 717),
    "ln_popart": (685, 717),
    "ln_fairgrad": ("–", 717),
    "ln_popart_fairgrad": (685, 717),
    "toppo_mt50": (685, 717),
}
OTHER_PARAMETERS = [
    ("ARS paper: SAC-MT", 2517, 2597),
    ("ARS paper: MT-MH-SAC", 2546, 2754),
    ("ARS paper: Soft Modularization", 3454, 3534),
    ("ARS paper: PCGrad-SAC", 2517, 2597),
    ("ARS paper: MOORE", 6890, 7403),
    ("ARS paper: ARS", 2517, 2597),
    ("ARS paper: ARS-LN (400)", 2530, 2611),
    ("ARS paper: ARS-LN (1024)", 16062, 16267),
    ("ARS paper: ARS-LoRA", 3878, 16123),
    ("Meta-World+: MTMHSAC / PCGrad", 1759, 2031),
    ("Meta-World+: Soft Modules", 3454, 8030),
    ("Meta-World+: MOORE", 6810, 10385),
    ("Meta-World+: PaCo (K=5 / K=20)", 8476, 33909),
]

# Table 3: the baseline, its parameters in thousands, and when TOPPO reaches its final IQM on MT50
# V1, in percent of TOPPO's 100 M steps.
MATCHED_AT = [
    ("MT-MH-SAC", 2031, 3),
    ("Soft Modularization", 8030, 12),
    ("MOORE", 10385, 13),
    ("PaCo", 33909, 2),
    ("PCGrad-SAC", 2031, 5),
]
# Their final IQM on MT50 V1, as far as secondary notes on Meta-World+ (arXiv 2505.11289) give it
BASELINE_IQM = {"Soft Modularization": 60.6, "MOORE": 61.2, "PaCo": 18.6}

# Table D.11: step of the best checkpoint in millions, over 10 seeds: median, quartiles, least and
# most.
BEST_STEP = {
    ("vanilla_mtppo", "MT10"): (15.0, 13.4, 17.2, 10.0, 19.6),
    ("ln", "MT10"): (11.8, 10.9, 16.4, 6.8, 20.0),
    ("ln_popart", "MT10"): (13.4, 9.7, 15.9, 6.4, 17.6),
    ("ln_fairgrad", "MT10"): (8.4, 6.7, 9.7, 5.6, 19.2),
    ("ln_popart_fairgrad", "MT10"): (8.4, 7.0, 9.8, 6.4, 12.4),
    ("toppo_mt50", "MT10"): (12.6, 9.4, 17.2, 7.2, 19.6),
    ("vanilla_mtppo", "MT50"): (93.5, 89.0, 97.2, 83.0, 99.0),
    ("ln", "MT50"): (77.0, 72.0, 86.5, 48.0, 96.0),
    ("ln_popart", "MT50"): (88.0, 67.0, 92.0, 40.0, 96.0),
    ("ln_fairgrad", "MT50"): (84.0, 70.0, 97.0, 58.0, 100.0),
    ("ln_popart_fairgrad", "MT50"): (86.0, 66.0, 97.5, 40.0, 100.0),
    ("toppo_mt50", "MT50"): (84.0, 51.0, 93.5, 46.0, 96.0),
}


def published(
    numbers: dict[tuple[str, str, str], float], script: str, task_set: str, reward: str
) -> str:
    """The cell for the paper's value.

    It is with its steps, so that nobody takes a shorter run of ours for the same thing.
    """
    value = numbers.get((script, task_set, reward))
    return f"{value} at {BUDGET[task_set]} M" if value else "–"
