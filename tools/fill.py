"""Fills the slots of pages with numbers and tables from results/.

    python tools/fill.py README.md docs/*.md results/README.md

A slot is <!--= EXPRESSION -->value<!--/-->, where EXPRESSION calls functions of this file. Methods
have the names that paper/tables.py gives them. Where there is no run yet the value is a dash.
"""

import re
import sys
from functools import cache
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "paper"))
from curves import scalars  # noqa: E402
from tables import ORDER, load, markdown, papers, worst  # noqa: E402

EVALS = load([ROOT / "results"])
SLOT = re.compile(r"(<!--= (.+?) -->)(\n?)(.*?)<!--/-->", re.S)


def runs(method, tasks, millions, worst_k=None):
    """Each run's success, of all tasks or of the worst_k worst: a number for each run."""
    here = EVALS.query("method == @method and tasks == @tasks and step == @millions * 1_000_000")
    each = here.groupby("run").success
    return each.apply(worst, k=worst_k) if worst_k else each.mean()


def each(*which):
    """All runs' numbers, such as 12.6, 14.0."""
    return ", ".join(f"{x:.1f}" for x in runs(*which)) or "–"


def mean(*which):
    return f"{runs(*which).mean():.1f}".replace("nan", "–")


def lead(method, other, *which):
    """Difference of two methods' means, in points."""
    return f"{runs(method, *which).mean() - runs(other, *which).mean():.1f}"


def evaluation(run, millions):
    return EVALS[(EVALS.run == str(ROOT / "results" / run)) & (EVALS.step == millions * 1e6)]


def one(run, millions, worst_k=None, task=None):
    """Success in a single run of results/: of all its tasks, of the worst or of one."""
    end = evaluation(run, millions)
    success = end.success[end.task == task] if task else end.success
    return f"{worst(success, worst_k or len(success)):.1f}"


def unsolved(run, millions):
    """How many tasks have no success in a single run."""
    return (evaluation(run, millions).success == 0).sum()


@cache
def log(run):
    return scalars(ROOT / "results" / run).pivot(index="step", columns="tag", values="value")


def logged(run, tag, millions, digits=2):
    """What a run logged as tag at a step."""
    return f"{log(run)[tag][round(millions * 1e6)]:.{digits}f}"


def ladder(tasks, *millions):
    """The rungs that have runs, with the value clip and without: every seed's success, after a
    slash that of the five and ten worst tasks where they have any. The paper's means."""
    there = set(EVALS.method[EVALS.tasks == tasks])
    rows = {}
    for method in [*ORDER[:6], *(f"{rung}, no value clip" for rung in ORDER[:6])]:
        if method in there:
            rows[method] = [with_tail(method, tasks, m) for m in millions]
        theirs = [papers(method, tasks, "V2", m) for m in millions]
        if set(theirs) != {"–"}:
            rows[f"{method}, the paper"] = theirs
    return markdown(pd.DataFrame(rows, [f"{m:g} M" for m in millions]).T)


def with_tail(*which):
    tails = [mean(*which, k) for k in (5, 10)[: 2 if which[1] == "MT50" else 1]]
    return " / ".join([each(*which), *(tails if set(tails) - {"0.0", "–"} else [])])


def changes(*rows):
    """Runs with a changed setting, (method, tasks, million steps) each, beside the default's."""
    cells = {
        f"{m}, {tasks}": [f"{at:g} M", each(m.split(", ")[0], tasks, at), each(m, tasks, at)]
        for m, tasks, at in rows
    }
    table = pd.DataFrame(cells, ["at", "default, each run", "changed"]).T
    return markdown(table.rename_axis("change"))


def filled(text):
    """The page with each slot's value renewed; a table stands on lines of its own."""
    return SLOT.sub(lambda x: f"{x[1]}{x[3]}{eval(x[2])}{x[3]}<!--/-->", text)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(filled(page.read_text()))
