"""Table B.2: parameters held in memory, optimizer apart, of our scripts and the published ones.

    python paper/table_b2_parameters.py --out results/paper

Writes table_b2.md. Needs no runs: ours are counted in the scripts' networks. What counts is Section
B.3's convention.
"""

from importlib import import_module

import runs as r
import torch
from published import OTHER_PARAMETERS, PARAMETERS

HIDDEN_SIZES = (400, 400, 400)  # Table B.1, the scripts' default
NOTE = """\
Actor, critic, log-std and PopArt's heads; PopArt's statistics, four numbers a task, are no
parameters."""


def count(script, num_tasks):
    with torch.device("meta"):  # shapes without numbers
        agent = import_module(script).Agent(num_tasks, HIDDEN_SIZES)
    return sum(p.numel() for p in agent.parameters())


def table_b2(_):
    rows = []
    for script, name in r.SCRIPTS.items():
        ours = [f"{count(script, num_tasks):,}" for num_tasks in (10, 50)]
        paper = [f"{n}K" if n != "–" else n for n in PARAMETERS.get(script, "––")]
        rows.append([name, f"`{r.SCRIPT_PATHS[script]}`", *ours, *paper])
    lines = r.table(["method", "script", "MT10", "MT50", "paper's MT10", "paper's MT50"], rows)
    lines += [NOTE, "", "Methods of other papers, without a script here; published numbers:", ""]
    others = [[name, f"{mt10}K", f"{mt50}K"] for name, mt10, mt50 in OTHER_PARAMETERS]
    lines += r.table(["method", "MT10", "MT50"], others)
    return "Table B.2: parameters", lines, None


ITEMS = {"table_b2": table_b2}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
