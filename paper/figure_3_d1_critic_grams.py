"""Critic Grams from gradient dumps, raw and behind PopArt, without LN and with it: Figures 3 (early) and D.1 (all stages).

    python paper/figure_3_d1_critic_grams.py runs/POPART runs/LN_POPART --out results/paper

Writes figure_3 and figure_d1, each .png and .md. Needs gradient dumps (--dump-gradients-every N), best of popart.py and of
ln_popart.py: raw gradients are PopArt's times sigma_k^2, Eq. (2). Scripts without PopArt have the raw ones only.
"""

import matplotlib.pyplot as plt
import numpy as np
import runs as r

WITHOUT_LN = ["popart", "popart_fairgrad", "vanilla_mtppo", "fairgrad"]
WITH_LN = ["ln_popart", "ln_popart_fairgrad", "toppo_mt50", "ln_popart_fairgrad_fairgrad", "ln_popart_pcgrad_pcgrad",
           "ln_popart_cagrad_cagrad", "toppo_popart_ema", "symmetric_ln_popart", "ln", "ln_fairgrad"]  # fmt: skip

NOTE = """The first minibatch of a collect, before its step, from one seed each: an illustration. Stages are the first, middle and
last step at which all runs shown have a dump. PopArt divides task k's gradient by σ_k², which leaves the cosines as they are:
only the diagonal may differ between raw and PopArt. Tasks are in the order of their raw norms, the largest first.

The paper: LN-c lowers the mean off-diagonal cosine early on and about leaves the diagonal; PopArt compresses the diagonal,
except for a reversal with LN-c in the middle of training."""


def sources(runs):
    """[(critic, run)] for the critic without LN and with it, and why one is absent."""
    found, absent = [], []
    for critic, scripts in ("no LN", WITHOUT_LN), ("LN-c", WITH_LN):
        try:
            found.append((critic, r.first_with_dumps(runs, scripts, f"the columns with {critic}")))
        except r.Missing as reason:
            absent.append(str(reason))
    if not found:
        raise r.Missing("; ".join(absent))
    return found, absent


def draw(axis, G, low):
    """Cosines of pairs off the diagonal; on it log10 of the norms over the largest, from low to 0. Returns both images."""
    eye, norms = np.eye(len(G), dtype=bool), np.sqrt(G.diagonal())
    with np.errstate(divide="ignore"):
        scale = np.diag(np.log10(norms / norms.max()))
    pairs = axis.imshow(np.ma.array(r.cosines(G), mask=eye), cmap="RdBu_r", vmin=-1, vmax=1)
    own = axis.imshow(np.ma.array(scale, mask=~eye), cmap="viridis", vmin=low, vmax=0)
    axis.set(xticks=[], yticks=[])
    return pairs, own


def heatmaps(title, runs, early_only):
    found, absent = sources(runs)
    panels, rows = {}, []  # {(row, column): (title, G)}
    dumps = [{r.read_dump(file).step: file for file in r.dump_files(run)} for _, run in found]
    shared = sorted(set.intersection(*map(set, dumps)))  # so that all panels of a row are of the same step
    if not shared:
        raise r.Missing(f"no gradient dumps at equal steps: {' and '.join(str(run.path) for _, run in found)}; make both again")
    for s, (critic, run) in enumerate(found):
        stages = r.early_middle_late([dumps[s][step] for step in shared])
        for i, (stage, file) in enumerate([*stages.items()][: 1 if early_only else None]):
            dump = r.read_dump(file)
            grams = [("raw", dump.critic_gram)]
            if dump.sigma is not None:
                square = dump.sigma**2
                grams = [("raw", dump.critic_gram * square * square[:, None]), ("PopArt", dump.critic_gram)]
            order = np.argsort(-grams[0][1].diagonal())
            for j, (label, G) in enumerate(grams):
                panels[i, 2 * s + j] = f"{critic}, {label}\n{stage}, {r.millions(dump.step)} steps", G[np.ix_(order, order)]
                numbers = f"{r.mean_off_diagonal(r.cosines(G)):.3f}", f"{np.sqrt(np.median(G.diagonal())):.3g}"
                source = r.METHODS[run.script], run.path.name, stage, r.millions(dump.step)
                rows.append([critic, label, *source, *numbers, f"{r.norm_spread(G):.3g}"])
    low = min(-np.log10(r.norm_spread(G)) for _, G in panels.values()) - 1e-9
    columns = sorted({j for _, j in panels})
    size = 1 + max(i for i, _ in panels), len(columns)
    figure, axes = plt.subplots(*size, figsize=(2.7 * size[1] + 2.2, 2.9 * size[0] + 0.4), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for (i, j), (name, G) in panels.items():
        axis = axes[i, columns.index(j)]
        axis.set_visible(True)
        axis.set_title(name, fontsize=10)
        pairs, own = draw(axis, G, low)
    figure.colorbar(pairs, ax=axes, shrink=0.8, aspect=30, label="off the diagonal: cosine")
    figure.colorbar(own, ax=axes, shrink=0.8, aspect=30, label="diagonal: log10 of norm / largest norm")
    header = ["critic", "gradients", "method", "run", "stage", "step", "mean off-diagonal cosine", "median norm"]
    lines = r.table([*header, "largest / smallest norm"], rows)
    return title, [*lines, NOTE, "", *(f"Not shown: {reason}." for reason in absent)], figure


ITEMS = {
    "figure_3": lambda runs: heatmaps("Figure 3: critic Grams, early", runs, early_only=True),
    "figure_d1": lambda runs: heatmaps("Figure D.1: critic Grams, early, middle and late", runs, early_only=False),
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
