"""Learning curves, mean ± std over seeds: Figures 1, 4, D.6 and D.7.

    python paper/figure_1_4_d6_d7_learning_curves.py runs/ --out results/paper

Writes figure_1 (mean and worst-k), figure_4 (the ends of the ladder's curves), figure_d6 (mean, V2
rewards), figure_d7 (mean, V1) and table_figure_1 (our curves minus the paper's, on MT50 with V2
rewards), each .png and .md. Bands are one sample std over seeds, from three seeds on.
"""

import math

import numpy as np
import runs as r
from published import BAND, BAND_UNTIL, BUDGET, CURVES, FINAL, SOURCE, papers_success

NOTE = "Success in percent at the last checkpoint. Worst k: each seed's own k lowest tasks."
COLUMNS = 3  # of Figure 1
AXIS = {"ylim": (-3, 103), "ylabel": "success (%)"}
PARTS = {  # what a rung of the ladder is made of
    "vanilla_mtppo": set(),
    "ln": {"LN-c"},
    "ln_popart": {"LN-c", "PopArt"},
    "ln_fairgrad": {"LN-c", "FG-c"},
    "ln_popart_fairgrad": {"LN-c", "PopArt", "FG-c"},
    "toppo_mt50": {"LN-c", "PopArt", "FG-c", "PCGrad-a"},
}


def tails(num_tasks):
    """All tasks, then the worst-k from wide to narrow."""
    return [num_tasks, *(k for k in reversed(r.WORST) if k < num_tasks)]


def size(methods):
    """K of the runs in {script: Seeds}."""
    return next(iter(methods.values())).success.shape[2]


def numbers(groups, ks):
    """Markdown: mean and worst-k at the last checkpoint, for k in ks(K)."""
    lines = []
    for key, methods in groups.items():
        num_tasks = size(methods)
        names = ["mean" if k == num_tasks else f"worst {k}" for k in ks(num_tasks)]
        rows = []
        for seeds in methods.values():
            scores = [r.worst(seeds.success[:, -1], k) for k in ks(num_tasks)]
            rows.append([*r.row_start(seeds), *map(r.percent, scores)])
        lines += r.heading(key, methods) + r.table([*r.ROW_START, *names], rows)
    return [*lines, f"{NOTE} {r.STATISTICS}"]


def not_flat(methods):
    """The k of tails whose curves are not at zero from the first to the last checkpoint."""
    return [
        k
        for k in tails(size(methods))
        if any(r.worst(seeds.success, k).any() for seeds in methods.values())
    ]


def draw_papers_curves(axis, methods):
    """The paper's curves of the methods, thin, as far as ours go."""
    span = axis.get_xlim()
    for script, points in CURVES.items():
        if script in methods:
            steps, success, _ = zip(*points)
            label = f"the paper's {r.METHODS[script]}, 10 seeds"
            style = {"color": r.COLORS[script], "linestyle": ":", "linewidth": 1, "zorder": 1}
            axis.plot(steps, success, label=label, **style)
    axis.set_xlim(span)


def draw_tails(axes, key, methods, ks):
    """The worst-k for each k of ks on an axis; axes that are left over are hidden."""
    for axis, k in zip(axes, ks):
        for script, seeds in methods.items():
            values = 100 * r.worst(seeds.success, k)
            r.plot_band(axis, seeds.steps, values, script, r.METHODS[script], limits=r.PERCENT)
        what = f"mean of {k} tasks" if k == size(methods) else f"worst {k}"
        axis.set_title(f"{key[0]}, {what}, {r.seed_counts(methods)}", fontsize=10)
        axis.set(xlabel="million environment steps", **AXIS)
    for axis in axes[len(ks) :]:
        axis.set_visible(False)
    if key[:2] == ("MT50", "v2"):
        draw_papers_curves(axes[0], methods)


def figure_1(runs):
    groups = r.groups(runs, "v2")
    drawn = {key: not_flat(methods) or [size(methods)] for key, methods in groups.items()}
    rows_of = {key: math.ceil(len(ks) / COLUMNS) for key, ks in drawn.items()}
    columns = min(COLUMNS, max(map(len, drawn.values())))
    figure, axes = r.grid(sum(rows_of.values()), columns, width=3.4, height=2.9)
    remaining: list[r.Axes] = [*axes.flat]
    lines = []
    for key, methods in groups.items():  # each group begins a row
        count = rows_of[key] * columns
        own, remaining = remaining[:count], remaining[count:]
        draw_tails(own, key, methods, drawn[key])
        flat = ", ".join(str(k) for k in tails(size(methods)) if k not in drawn[key])
        if flat:
            lines.append(f"{r.where(*key)}: not drawn, as at 0 throughout: worst {flat}.")
            own[0].set_xlabel(f"million environment steps\n(worst {flat}: 0 throughout)")
    r.legend_below(figure)
    title = "Figure 1: learning curves of the mean and the tail, V2 rewards"
    numbered = numbers(groups, tails)
    if any(key[:2] == ("MT50", "v2") for key in groups):
        numbered += ["", SOURCE]
    return title, [*numbered, "", r.CURVES, "", *lines], figure


def mean_by_step(runs):
    """{step: (mean success in percent over the seeds evaluated there, how many they are)}."""
    found = {}
    for step in sorted({int(step) for run in runs for step in run.steps}):
        scores = [100 * run.success[run.steps == step].mean() for run in runs if step in run.steps]
        found[step] = np.mean(scores), len(scores)
    return found


def verdict(script, differences):
    """The largest and the last difference in words. differences: {step in millions: points}."""
    at = max(differences, key=lambda step: abs(differences[step]))
    last = max(differences)
    text = f"{r.METHODS[script]}: the largest difference is {differences[at]:+.1f} points, at "
    text += f"{at:g} M steps, the last {differences[last]:+.1f}, at {last:g} M."
    early = [abs(x) for step, x in differences.items() if step < BAND_UNTIL]
    if early:
        inside = sum(x <= BAND for x in early)
        text += f" Before {BAND_UNTIL} M, where the band of the paper's seeds is about ±{BAND} "
        text += f"points, {inside} of {len(early)} differences are within it."
    return text


def draw_differences(curves):
    """Ours, and the paper's with their band. curves: {method: {step in millions: success}}."""
    figure, axis = r.plt.subplots(figsize=(6, 3.6), layout="constrained")
    for script, ours in curves.items():
        (line,) = axis.plot([*ours], [*ours.values()], "o", color=r.COLORS[script])
        line.set(linestyle=r.DASHES[script], label=f"{r.METHODS[script]}, ours")
    drawn = {script.removesuffix(r.NO_CLIP) for script in curves}
    for script in [script for script in CURVES if script in drawn]:
        color = r.COLORS[script]
        name = r.METHODS[script]
        steps, success, _ = (np.array(x) for x in zip(*CURVES[script]))
        early = steps <= BAND_UNTIL
        low, high = success[early] - BAND, success[early] + BAND
        axis.plot(steps, success, ":", color=color, label=f"{name}, the paper's ±{BAND}")
        axis.fill_between(steps[early], low, high, color=color, alpha=0.12, linewidth=0)
    last = max(step for ours in curves.values() for step in ours)
    highest = max(max(ours.values()) for ours in curves.values())
    axis.set(xlim=(0, 1.1 * last), ylim=(0, 1.3 * highest), ylabel="success (%)")
    axis.set(xlabel="million environment steps", title="MT50, V2 rewards, mean of 50 tasks")
    axis.legend(loc="upper left", fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def table_figure_1(runs):
    """Ours minus the paper's, a row for each step that both have; without the value clip, too."""
    lines = []
    curves = {}
    for script in [*CURVES, *(script + r.NO_CLIP for script in CURVES)]:
        papers_script = script.removesuffix(r.NO_CLIP)
        papers = CURVES[papers_script]
        ours = [
            run for run in runs if (run.script, run.task_set, run.reward) == (script, "MT50", "v2")
        ]
        means = mean_by_step(ours)
        rows = []
        differences = {}
        for step, (mean, count) in means.items():
            paper = papers_success(papers_script, step / 1e6)
            if paper is None:
                continue
            digitised = any(point.step == step / 1e6 for point in papers)
            exact = any(point.step == step / 1e6 and point.exact for point in papers)
            differences[step / 1e6] = mean - paper
            how = "printed" if exact else "read off" if digitised else "interpolated"
            row = [r.millions(step), count, f"{mean:.1f}", f"{paper:.1f}", how]
            rows.append([*row, f"{mean - paper:+.1f}"])
        if rows:
            lines += [f"## {r.METHODS[script]}", "", *r.fewer_goals(ours[0])]
            lines += [verdict(script, differences), ""]
            curves[script] = {step / 1e6: mean for step, (mean, _) in means.items()}
            header = ["step", "n", "ours", "paper's", "the paper's value is", "ours − paper's"]
            lines += r.table(header, rows)
    if not lines:
        first = CURVES["toppo_mt50"][0].step
        lack = f"no run of toppo_mt50.py or vanilla_mtppo.py on MT50, V2, with {first:g} M steps"
        raise r.Missing(f"{lack}; make one: python toppo_mt50.py --benchmark MT50")
    lines += [
        "Mean success over tasks in percent, ours over the n seeds that were evaluated at the "
        "step, and differences in points. Interpolated: linearly between the two nearest steps at "
        "which the paper's curve could be read off; before the first of them there is nothing to "
        "compare with.",
        "",
        SOURCE,
    ]
    title = "Figure 1 reproduced: ours minus the paper's, MT50, V2 rewards"
    return title, lines, draw_differences(curves)


def steps_up(scripts):
    """The pairs (rung, next rung) where the second has all of the first's parts, and more.

    Rungs side by side, as PopArt's and FairGrad's are, make no pair.
    """
    above = [(a, b) for a in scripts for b in scripts if PARTS[a] < PARTS[b]]
    return [
        (a, b) for a, b in above if not any((a, c) in above and (c, b) in above for c in scripts)
    ]


def places(scripts):
    """{rung: where it stands from left to right}, by its number of parts; siblings side by side."""
    sizes = sorted({len(PARTS[script]) for script in scripts})
    found = {}
    for script in scripts:
        siblings = [other for other in scripts if len(PARTS[other]) == len(PARTS[script])]
        shift = 0.6 * (siblings.index(script) - (len(siblings) - 1) / 2)
        found[script] = sizes.index(len(PARTS[script])) + shift
    return found


def ladder_ends(axis, methods, k, name, **style):
    """The worst-k of every method at its last checkpoint, from left to right; of all with None."""
    scores = {script: 100 * r.worst(seeds.success[:, -1], k) for script, seeds in methods.items()}
    place = places([*methods])
    means = [x.mean() for x in scores.values()]
    axis.plot([*place.values()], means, linestyle="none", label=name, **style)
    color = style["color"]
    for a, b in steps_up([*methods]):
        ends = scores[a].mean(), scores[b].mean()
        axis.plot([place[a], place[b]], ends, color=color, linewidth=1.2)
    for i, x in zip(place.values(), scores.values()):
        axis.plot(np.full(len(x), i), x, ".", color=color, alpha=0.5, markersize=5)
        if len(x) > 2:
            low, high = np.clip([x.mean() - x.std(ddof=1), x.mean() + x.std(ddof=1)], *r.PERCENT)
            bar = [[x.mean() - low], [high - x.mean()]]
            axis.errorbar(i, x.mean(), bar, color=color, capsize=3)


def figure_4(runs):
    groups = r.groups(runs, "v2", scripts=list(r.LADDER))
    figure, axes = r.tiles(len(groups), 2, width=6.5, height=4)
    for axis, (key, methods) in zip(axes, groups.items()):
        num_tasks = size(methods)
        k = r.tail_size(num_tasks)
        every = f"mean of {num_tasks} tasks"
        ladder_ends(axis, methods, None, every, marker="o", color="#0072B2")
        ladder_ends(axis, methods, k, f"worst {k}", marker="s", color="#D55E00")
        names = [r.METHODS[script].replace(" ", "\n") for script in methods]
        counts = [len(seeds.runs) for seeds in methods.values()]
        ticks = [f"{name}\nn = {n}" for name, n in zip(names, counts)]
        place = places([*methods])
        axis.set_xticks([*place.values()], ticks, fontsize=8)
        title = f"{r.where(*key)}, {r.seed_counts(methods)}"
        axis.set(xlim=(-0.4, max(place.values()) + 0.4), title=title, **AXIS)
        axis.legend(loc="upper left")
    lines = numbers(groups, lambda num_tasks: [num_tasks, r.tail_size(num_tasks)])
    lines += [
        "Small dots: single seeds. A line leads from a rung to the next one that has all of "
        "its parts and more; +PopArt and +FG-c are side by side. Bars, from three seeds on: "
        "one sample std."
    ]
    return "Figure 4: the ladder, mean and tail", lines, figure


def mean_curves(name, runs, reward):
    groups = r.groups(runs, reward)
    figure, axes = r.tiles(len(groups), 2, width=6, height=4)
    for axis, (key, methods) in zip(axes, groups.items()):
        for script, seeds in methods.items():
            label = f"{r.METHODS[script]} (n = {len(seeds.runs)})"
            mean = 100 * seeds.success.mean(2)
            r.plot_band(axis, seeds.steps, mean, script, label, limits=r.PERCENT)
        paper = FINAL.get(("toppo_mt50", *key[:2]))
        if paper:
            label = f"paper's TOPPO at {BUDGET[key[0]]} M: {paper}"
            axis.axhline(paper, color=r.COLORS["toppo_mt50"], linestyle=":", label=label)
        if key[:2] == ("MT50", "v2"):
            draw_papers_curves(axis, methods)
        title = f"{r.where(*key)}, {r.seed_counts(methods)}"
        axis.set(xlabel="million environment steps", title=title, **AXIS)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, ncols=2)
    title = f"{name}: learning curves of the mean, {reward.upper()} rewards"
    return title, [*numbers(groups, lambda num_tasks: [num_tasks]), "", r.CURVES], figure


ITEMS = {
    "figure_1": figure_1,
    "table_figure_1": table_figure_1,
    "figure_4": figure_4,
    "figure_d6": lambda runs: mean_curves("Figure D.6", runs, "v2"),
    "figure_d7": lambda runs: mean_curves("Figure D.7", runs, "v1"),
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
