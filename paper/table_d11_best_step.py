"""Table D.11: the step of each seed's best checkpoint: median, quartiles and range over seeds.

    python paper/table_d11_best_step.py runs/ --out results/paper

Writes table_d11.md. Of several checkpoints with the same mean success, the first counts.
"""

import numpy as np
import runs as r
from published import BEST_STEP

COLUMNS = ["median", "quartiles", "range"]
NOTE = """\
Million steps; a single seed has no quartiles. The paper's: 10 seeds, V2, 20 M steps on MT10 and
100 M on MT50."""


def cells(median, low, high, least, most):
    return [f"{median:.4g}", f"[{low:.4g}, {high:.4g}]", f"{least:.4g}–{most:.4g}"]


def table_d11(runs):
    header = [*r.ROW_START, *COLUMNS, *(f"paper's {name}" for name in COLUMNS)]
    lines = []
    for key, methods in r.groups(runs).items():
        rows = []
        for script, seeds in methods.items():
            at = seeds.steps[seeds.success.mean(-1).argmax(1)] / 1e6  # [n]
            ours = [f"{at[0]:.4g}", "–", "–"]
            if len(at) > 1:
                ours = cells(*np.quantile(at, [0.5, 0.25, 0.75, 0, 1]))
            paper = ["–", "–", "–"]
            if key[1] == "v2" and (script, key[0]) in BEST_STEP:
                paper = cells(*BEST_STEP[script, key[0]])
            rows.append([*r.row_start(seeds), *ours, *paper])
        lines += r.heading(key, methods) + r.table(header, rows)
    return "Table D.11: steps of the best checkpoints", [*lines, NOTE], None


ITEMS = {"table_d11": table_d11}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
