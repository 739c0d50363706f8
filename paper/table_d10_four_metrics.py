"""Table D.10: mean success by four conventions: best, peak, final and late.

    python paper/table_d10_four_metrics.py runs/ --out results/paper

Writes table_d10.md.
"""

from collections.abc import Callable

import runs as r
from published import ABSENT, FINAL, published

METRICS: dict[str, Callable] = {"best": r.best, "peak": r.peak, "final": r.final, "late": r.late}
NOTE = (
    "Mean success over tasks in percent. Best: each seed's best checkpoint. Peak: highest point of "
    "the seeds' mean curve. Final: last checkpoint. Late: mean over the last tenth of the "
    "checkpoints. The paper says of TOPPO's best on MT10, V2, at 20 M: every seed clears 99 %."
)


def table_d10(runs):
    lines = []
    for key, methods in r.groups(runs).items():
        rows = []
        for script, seeds in methods.items():
            scores = [r.percent(metric(seeds.success)) for metric in METRICS.values()]
            rows.append([*r.row_start(seeds), *scores, published(FINAL, script, *key[:2])])
        lines += r.heading(key, methods)
        lines += r.table([*r.ROW_START, *METRICS, "paper's final"], rows)
    lines.append(f"{NOTE} {r.STATISTICS} {ABSENT}")
    return "Table D.10: best, peak, final and late success", lines, None


ITEMS = {"table_d10": table_d10}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
