"""Figure 2: spread of per-task gradient norms, critic against actor, and the ratio of the combined
gradients' norms, ||d_critic|| / ||d_actor||. Figure D.2: the norms.

    python paper/figure_2_d2_norm_spread.py runs/ --out results/paper

Writes figure_2 and figure_d2, each .png and .md, from what every run logs to TensorBoard: means
over a collect's minibatches. Norms behind PopArt are also shown as those of the raw loss: times
sigma_k^2, Eq. (2).
"""

import numpy as np
import runs as r

NOTE_2 = (
    """\
First → middle → last collect, mean over seeds. Spread: largest over smallest per-task norm (10 to
the mean over minibatches of log10) of the gradients that are combined: behind PopArt where a script
has it. × σ², dotted: the spread of the collect's mean norms times σ², those of the raw loss. Norm
ratio: ‖d critic‖ / ‖d actor‖, the collect's mean norms of the combined gradients before they are
clipped.
"""
    + f"""
{r.SIGMA} {r.CURVES}
"""
    + """
The paper: the critic's spread of raw gradients is two orders of magnitude above the actor's, all
through training, and FG-c steadies the norm ratio, as ‖d critic‖ is then √K."""
)
NOTE_D2 = f"""\
A line per task: mean over a collect's minibatches and over seeds. Spread: largest over smallest of
a seed's means, mean over seeds. The method is +LN-c +PopArt, as in the paper, or, without a run of
it, the first there is. Of more than {r.MOST_NAMED} tasks, those with the largest and the smallest
critic norms at the end have names, the others are grey. {r.SIGMA}"""
TITLES = ["critic (dotted: × σ² behind PopArt)", "actor", "‖d critic‖ / ‖d actor‖"]
COLUMNS = [
    "critic spread",
    "critic spread × σ²",
    "actor spread",
    "critic / actor spread",
    "norm ratio",
]
SIDES = {"actor": "actor", "critic": "critic", "raw": "critic × σ²"}  # as Figure D.2 calls them


def logged_by_task(seeds, tag):
    """Steps [C] and values [n, C, K] of what is logged task by task."""
    series = [r.logged(seeds, f"{tag}/{task}") for task in seeds.runs[0].tasks]
    return series[0][0], np.stack([values for _, values in series], axis=-1)


def norms(seeds, side):
    """Steps [C] and norms [n, C, K] of "actor", "critic" or "raw", the critic's times sigma^2."""
    if side != "raw":
        return logged_by_task(seeds, f"{side}_gradient_norm")
    steps, values = logged_by_task(seeds, "critic_gradient_norm")
    _, sigma = logged_by_task(seeds, "popart_sigma")
    return steps, values * sigma**2


def norm_ratio(seeds):
    """Steps [C] and ||d_critic|| / ||d_actor|| [n, C]."""
    steps, critic = r.logged(seeds, "gradients/critic_combined_norm")
    _, actor = r.logged(seeds, "gradients/actor_combined_norm")
    return steps, critic / actor


def has_popart(seeds):
    return f"popart_sigma/{seeds.runs[0].tasks[0]}" in r.scalars(seeds.runs[0].path)


def spread(values):
    """Largest over smallest norm that is not zero. values: [..., K]. Returns [...]."""
    return values.max(-1) / np.where(values > 0, values, np.inf).min(-1)


def first_middle_last(curve):
    return " → ".join(f"{x:.3g}" for x in curve[[0, len(curve) // 2, -1]])


def draw_spreads(axes, script, seeds):
    """Draws one method's curves. Returns its cells in the table's COLUMNS."""
    spreads = {}
    for axis, side in zip(axes, ("critic", "actor")):
        steps, values = r.logged(seeds, f"gradients/{side}_log10_norm_spread")
        r.plot_band(axis, steps, values, script, r.METHODS[script])
        spreads[side] = (10**values).mean(0)  # over seeds
    raw = "–"
    if has_popart(seeds):
        steps, values = norms(seeds, "raw")
        spreads["raw"] = spread(values)
        log_spread = np.log10(spreads["raw"])
        r.plot_band(axes[0], steps, log_spread, script, linestyle=":", linewidth=1.2)
        raw = first_middle_last(spreads["raw"].mean(0))
    steps, ratio = norm_ratio(seeds)
    r.plot_band(axes[2], steps, ratio, script, r.METHODS[script])
    return [
        first_middle_last(spreads["critic"]),
        raw,
        first_middle_last(spreads["actor"]),
        first_middle_last(spreads["critic"] / spreads["actor"]),
        first_middle_last(ratio.mean(0)),
    ]


def figure_2(runs):
    groups = r.groups(r.with_clip(runs))
    figure, axes = r.grid(len(groups), 3, width=4.8, height=3.4)
    lines = []
    for row, (key, methods) in zip(axes, groups.items()):
        cells = [
            [*r.row_start(seeds), *draw_spreads(row, script, seeds)]
            for script, seeds in methods.items()
        ]
        lines += r.heading(key, methods) + r.table([*r.ROW_START, *COLUMNS], cells)
        for axis, title in zip(row, TITLES):
            axis.set_title(f"{title}, {r.seed_counts(methods)}", fontsize=10)
            axis.set_xlabel("million environment steps")
        top = 1.05 * max(axis.get_ylim()[1] for axis in row[:2])
        what = "log10(largest / smallest norm)"
        for axis in row[:2]:
            axis.set(ylim=(0, top), ylabel=what)
        row[0].set_ylabel(f"{key[0]}, {key[1].upper()}\n{what}")
        row[2].set(yscale="log")
    r.legend_below(figure)
    return "Figure 2: spread of the gradient norms, critic against actor", [*lines, NOTE_2], figure


def same_span(axes):
    """As many decades on each, so that spreads compare by eye."""
    bounds = np.log([axis.get_ylim() for axis in axes])
    half = np.diff(bounds).max() / 2
    for axis, middle in zip(axes, bounds.mean(1)):
        axis.set_ylim(np.exp(middle - half), np.exp(middle + half))


def figure_d2(runs):
    groups = r.groups(r.with_clip(runs))
    figure, axes = r.grid(len(groups), 3, width=4.4, height=3.4)
    rows = []
    for row, (key, methods) in zip(axes, groups.items()):
        seeds = methods.get("ln_popart", next(iter(methods.values())))  # the paper's, or the first
        sides = list(SIDES) if has_popart(seeds) else ["actor", "critic"]
        source = f"{r.METHODS[seeds.script]}, {key[0]}, {key[1].upper()}, n = {len(seeds.runs)}"
        tasks = seeds.runs[0].tasks
        styles = r.task_styles(tasks, norms(seeds, "critic")[1].mean(0)[-1])
        for axis, side in zip(row, sides):
            steps, values = norms(seeds, side)
            mean = values.mean(0)  # [C, K]
            for k, task in enumerate(tasks):
                axis.plot(steps / 1e6, mean[:, k], **styles[task])
            axis.set(yscale="log", xlabel="million environment steps")
            axis.set_ylabel("norm of a task's gradient")
            axis.set_title(f"{SIDES[side]}: {source}", fontsize=9)
            spreads = first_middle_last(spread(values).mean(0))
            rows.append([r.where(*key), *r.row_start(seeds), SIDES[side], spreads])
        same_span(row[: len(sides)])
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        for axis in row[len(sides) :]:
            axis.set_axis_off()
        row[-1].legend(*row[0].get_legend_handles_labels(), fontsize=8, **beside)
    lines = r.table(["runs", *r.ROW_START, "side", "spread, first → middle → last collect"], rows)
    return "Figure D.2: per-task gradient norms", [*lines, NOTE_D2], figure


ITEMS = {"figure_2": figure_2, "figure_d2": figure_d2}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
