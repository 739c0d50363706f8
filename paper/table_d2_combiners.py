"""Table D.2: combiners of the actor's and the critic's gradients, on LN-c and PopArt.

    python paper/table_d2_combiners.py runs/ --out results/paper

Writes table_d2.md: best, final and IQM success.
"""

import runs as r
from published import ABSENT, FINAL, published

COMBINERS = {  # script: (actor, critic)
    "ln_popart": ("default", "default"),
    "ln_popart_fairgrad": ("default", "FG (α = 1)"),
    "toppo_mt50": ("PCGrad", "FG (α = 1)"),
    "ln_popart_fairgrad_fairgrad": ("FG (α = 1)", "FG (α = 1)"),
    "ln_popart_pcgrad_pcgrad": ("PCGrad", "PCGrad"),
    "ln_popart_cagrad_cagrad": ("CAGrad", "CAGrad"),
}
COLUMNS = ["actor", "critic", "n", "best", "final", "IQM (95 % interval)", "paper's final"]
NOTE = (
    "Success in percent. Best: each seed's best checkpoint. Final, IQM: the last. "
    "Interval: rliable's bootstrap of seeds, from three seeds on."
)
PAPERS = "The paper's Table D.2 is of MT50 on V2; its final success on MT10 is from Table 2."


def table_d2(runs):
    lines = []
    for key, methods in r.groups(runs, scripts=list(COMBINERS)).items():
        rows = []
        for script, sides in COMBINERS.items():
            if script not in methods:
                continue
            success = methods[script].success
            value, interval, _ = r.iqm(success)
            iqm = f"{100 * value:.1f}"
            if interval is not None:
                iqm += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
            scores = [r.percent(r.best(success)), r.percent(r.final(success)), iqm]
            rows.append([*sides, len(success), *scores, published(FINAL, script, *key[:2])])
        lines += r.heading(key, methods, COMBINERS) + r.table(COLUMNS, rows)
    lines.append(f"{NOTE} {r.STATISTICS} {ABSENT} {PAPERS}")
    return "Table D.2: combiners per side", lines, None


ITEMS = {"table_d2": table_d2}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
