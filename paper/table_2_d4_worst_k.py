"""Table 2 (V2 rewards) and Table D.4 (V1): final success, mean over tasks and of the k worst.

    python paper/table_2_d4_worst_k.py runs/ --out results/paper

Writes table_2.md and table_d4.md, with a section for each task set and step at which runs end.
"""

import runs as r
from published import ABSENT, FINAL, published

NOTE = (
    "Success in percent at the last checkpoint, of the policy's mean action. "
    "Worst k: each seed's own k lowest tasks."
)


def table(name, runs, reward):
    lines = []
    for key, methods in r.groups(runs, reward).items():
        num_tasks = next(iter(methods.values())).success.shape[2]
        ks = [k for k in r.WORST if k < num_tasks]
        rows = []
        for script, seeds in methods.items():
            end = seeds.success[:, -1]  # [n, K]
            mean = r.percent(end.mean(1))
            tails = [r.percent(r.worst(end, k)) for k in ks]
            paper = published(FINAL, script, *key[:2])
            rows.append([*r.row_start(seeds), mean, paper, *tails])
        header = [*r.ROW_START, f"mean of {num_tasks}", "paper's mean", *(f"worst {k}" for k in ks)]
        lines += r.heading(key, methods) + r.table(header, rows)
    lines += [f"{NOTE} {r.STATISTICS} {ABSENT}", ""]
    lines += ["Parameters, also those of the paper's other rows, are in Table B.2."]
    return f"{name}: final success and its tail, {reward.upper()} rewards", lines, None


ITEMS = {
    "table_2": lambda runs: table("Table 2", runs, "v2"),
    "table_d4": lambda runs: table("Table D.4", runs, "v1"),
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
