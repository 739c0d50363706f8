"""When TOPPO matches the final scores that others publish: the paper's crossings beside ours.

    python paper/table_steps_to_match.py runs/ --out results/paper

Writes table_steps_to_match.md, for MT50. V2 rewards: the baselines of the paper's Figure 1, by mean
success. V1: those of its Table 3, by IQM.
"""

import numpy as np
import runs as r
from figure_1_4_d6_d7_learning_curves import mean_by_step
from published import (
    BASELINE_IQM,
    BASELINES,
    BUDGET,
    CURVES,
    IQM,
    MATCHED_AT,
    SOURCE,
    first_crossing,
)

NOTE = """\
First evaluation: the first at which our mean over seeds, n of them, is at or above the baseline's
final score. By interpolation: on the line from the evaluation before. Where our runs
have not got there, their highest mean so far is given instead."""
HEADER = ["baseline", "its final score", "paper's {}, M", "ours, first evaluation", "interpolated"]


def of(runs, script, reward):
    return [
        run for run in runs if (run.script, run.task_set, run.reward) == (script, "MT50", reward)
    ]


def ours(curve, level):
    """Our two cells for a level in percent. curve: {step: (score in percent, number of seeds)}."""
    steps = [step / 1e6 for step in curve]
    scores = [score for score, _ in curve.values()]
    counts = [count for _, count in curve.values()]
    found = first_crossing(steps, scores, level)
    if found is None:
        i = int(np.argmax(scores))
        return [f"not by {steps[-1]:g} M: {scores[i]:.1f} at {steps[i]:g} M, n = {counts[i]}", "–"]
    i, at = found
    return [f"{steps[i]:g} M: {scores[i]:.1f}, n = {counts[i]}", f"{at:.3g} M"]


def papers_crossing(script, baseline):
    """The step in millions, as printed in Figure 1 or else between the points read off it."""
    if script == "toppo_mt50" and baseline.crossing is not None:
        return f"{baseline.crossing:g}"
    steps, success, _ = zip(*CURVES[script])
    found = first_crossing(steps, success, baseline.final)
    return f"≈ {found[1]:.3g}" if found else "never"


def with_v2(script, runs):
    curve = mean_by_step(runs)
    rows = []
    for baseline in BASELINES:
        final = f"{'' if baseline.exact else '≈ '}{baseline.final} ± {baseline.std}"
        paper = papers_crossing(script, baseline)
        rows.append([baseline.name, final, paper, *ours(curve, baseline.final)])
    header = [column.format(r.METHODS[script]) for column in HEADER]
    lines = [f"## {r.METHODS[script]}, MT50, V2: mean success", "", *r.fewer_goals(runs[0])]
    return [*lines, *r.table(header, rows)]


def iqm_by_step(runs):
    """{step: (IQM in percent over tasks and the seeds evaluated there, how many they are)}."""
    from rliable import metrics  # imports pandas and more

    found = {}
    for step in sorted({int(step) for run in runs for step in run.steps}):
        scores = np.concatenate([run.success[run.steps == step] for run in runs])  # [n, K]
        found[step] = 100 * metrics.aggregate_iqm(scores), len(scores)
    return found


def with_v1(runs):
    curve = iqm_by_step(runs)
    rows = []
    for name, _, share in MATCHED_AT:
        paper = f"{share * BUDGET['MT50'] / 100:g}"
        if name in BASELINE_IQM:
            rows.append([name, BASELINE_IQM[name], paper, *ours(curve, BASELINE_IQM[name])])
        else:
            rows.append([name, "not known here", paper, "–", "–"])
    header = [column.format(r.METHODS["toppo_mt50"]) for column in HEADER]
    final = IQM["toppo_mt50", "MT50", "v1"]
    end = f"The paper's TOPPO ends at {final}. Its steps are given as whole percents of its 100 M."
    lines = ["## TOPPO, MT50, V1: IQM", "", *r.fewer_goals(runs[0])]
    lines += [*r.table(header, rows), end, ""]
    source = "The baselines' IQM are from secondary notes on Meta-World+ (arXiv 2505.11289)."
    return [*lines, source, ""]


def table_steps_to_match(runs):
    lines = []
    absent = []
    for script in CURVES:
        found = of(runs, script, "v2")
        if found:
            lines += with_v2(script, found)
        else:
            command = f"python {r.SCRIPT_PATHS[script]} --benchmark MT50"
            absent.append(f"no run of {script}.py on MT50 with V2 rewards; make one: {command}")
    found = of(runs, "toppo_mt50", "v1")
    if found:
        lines += with_v1(found)
    else:
        command = "python toppo_mt50.py --benchmark MT50 --reward-version v1"
        absent.append(f"no run of toppo_mt50.py on MT50 with V1 rewards; make one: {command}")
    if not lines:
        raise r.Missing("; ".join(absent))
    lines += [f"Not shown: {reason}." for reason in absent]
    return "Steps to match the published baselines", [*lines, "", NOTE, "", SOURCE], None


ITEMS = {"table_steps_to_match": table_steps_to_match}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
