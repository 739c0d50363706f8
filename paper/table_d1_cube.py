"""Table D.1: PopArt x FairGrad in the critic, with LN-c (the paper's four cells) and without.

    python paper/table_d1_cube.py runs/ --out results/paper

Writes table_d1.md: final mean and worst-k success, and what PopArt adds where FairGrad is off and
where it is on.
"""

from itertools import product

import runs as r

WITH_CLIP = {  # script: (LN-c, PopArt, FG-c)
    "ln": (1, 0, 0),
    "ln_popart": (1, 1, 0),
    "ln_fairgrad": (1, 0, 1),
    "ln_popart_fairgrad": (1, 1, 1),
    "vanilla_mtppo": (0, 0, 0),
    "popart": (0, 1, 0),
    "fairgrad": (0, 0, 1),
    "popart_fairgrad": (0, 1, 1),
}
CUBE = {script: (*cell, 1) for script, cell in WITH_CLIP.items()}
CUBE |= {script + r.NO_CLIP: (*cell, 0) for script, cell in WITH_CLIP.items()}
NOTE = f"""\
Success in percent at the last checkpoint. {r.STATISTICS}

The paper: with LN-c, PopArt adds less to the worst 10 where FG-c is on, as Corollary 1 suggests.
Its Table D.1 is MT50 on V2 at 100 M steps; the values are not among those that `paper/published.py`
has."""


def what_popart_adds(scores):
    """Rows of differences of means. scores: {cell of CUBE: (mean [n], worst-k [n])}."""
    rows = []
    for clip, layer_norm, fairgrad in product((1, 0), (1, 0), (0, 1)):
        without = scores.get((layer_norm, 0, fairgrad, clip))
        with_popart = scores.get((layer_norm, 1, fairgrad, clip))
        if without and with_popart:
            pairs = zip(with_popart, without)
            changes = [f"{100 * (after.mean() - before.mean()):+.1f}" for after, before in pairs]
            where = f"{'with' if layer_norm else 'no'} LN-c, {'with' if fairgrad else 'no'} FG-c"
            where += "" if clip else ", no value clip"
            rows.append([where, *changes])
    return rows


def table_d1(runs):
    lines = []
    for key, methods in r.groups(runs, scripts=list(CUBE)).items():
        k = r.tail_size(next(iter(methods.values())).success.shape[2])
        rows = []
        scores = {}
        for script, cell in CUBE.items():
            if script in methods:
                end = methods[script].success[:, -1]  # [n, K]
                scores[cell] = end.mean(1), r.worst(end, k)
                on = ["✓" if x else "–" for x in cell]
                numbers = [len(end), *map(r.percent, scores[cell])]
                path = r.SCRIPT_PATHS[script.removesuffix(r.NO_CLIP)]
                rows.append([f"`{path}`", *on, *numbers])
        header = ["script", "LN-c", "PopArt", "FG-c", "value clip", "n", "mean", f"worst {k}"]
        lines += r.heading(key, methods, WITH_CLIP) + r.table(header, rows)
        added = what_popart_adds(scores)
        if added:
            lines += ["What PopArt adds (difference of means, in points):", ""]
            lines += r.table(["", "mean", f"worst {k}"], added)
    return "Table D.1: PopArt and FairGrad in the critic, the cube", [*lines, NOTE], None


ITEMS = {"table_d1": table_d1}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
