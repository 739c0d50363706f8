"""Figure 2: spread of per-task gradient norms, critic against actor, and ||d_critic|| / ||d_actor||. Figure D.2: the norms.

    python paper/figure_2_d2_norm_spread.py runs/ --out results/paper

Writes figure_2 and figure_d2, each .png and .md, from what every run logs to TensorBoard: means over a collect's minibatches.
Norms behind PopArt are also shown as those of the raw loss: times sigma_k^2, Eq. (2).
"""

import numpy as np
import runs as r

NOTE_2 = """First → middle → last collect, mean over seeds. Spread: largest over smallest per-task norm (10 to the mean over
minibatches of log10) of the gradients that are combined: behind PopArt where a script has it. × σ², dotted: the spread of
the collect's mean norms times σ², those of the raw loss. Norm ratio: ‖d critic‖ / ‖d actor‖ of the combined gradients
before they are clipped.

The paper: the critic's spread of raw gradients is two orders of magnitude above the actor's, all through training, and FG-c
steadies the norm ratio, as ‖d critic‖ is then √K."""
NOTE_D2 = """A line per task: mean over a collect's minibatches and over seeds. Spread: largest over smallest of a seed's
means, mean over seeds. The method is +LN-c +PopArt, as in the paper, or, without a run of it, the first there is."""


def norms(seeds, side):
    """Steps [C] and per-task norms [n, C, K] of "actor", "critic", or "raw", the critic's times PopArt's sigma^2."""
    tag = "actor_gradient_norm" if side == "actor" else "critic_gradient_norm"
    tasks = seeds.runs[0].tasks
    series = [r.logged(seeds, f"{tag}/{task}") for task in tasks]
    values = np.stack([v for _, v in series], axis=-1)
    if side == "raw":
        values = values * np.stack([r.logged(seeds, f"popart_sigma/{task}")[1] for task in tasks], axis=-1) ** 2
    return series[0][0], values


def has_popart(seeds):
    return f"popart_sigma/{seeds.runs[0].tasks[0]}" in r.scalars(seeds.runs[0].path)


def spread(values):
    """Largest over smallest norm that is not zero. values [..., K]. Returns [...]."""
    return values.max(-1) / np.where(values > 0, values, np.inf).min(-1)


def first_middle_last(curve):
    return " → ".join(f"{x:.3g}" for x in curve[[0, len(curve) // 2, -1]])


def figure_2(runs):
    groups = r.groups(runs)
    figure, axes = r.grid(len(groups), 3, width=4.8, height=3.4)
    titles = "critic (dotted: × σ² behind PopArt)", "actor", "‖d critic‖ / ‖d actor‖"
    lines = []
    for row, (key, methods) in zip(axes, groups.items()):
        rows = []
        for script, seeds in methods.items():
            curves = []
            for axis, tag in zip(row, ("critic_log10_norm_spread", "actor_log10_norm_spread", "norm_ratio")):
                steps, values = r.logged(seeds, f"gradients/{tag}")
                r.plot_band(axis, steps, values, script, r.METHODS[script])
                curves.append((values if tag == "norm_ratio" else 10**values).mean(0))  # over seeds
            raw = "–"
            if has_popart(seeds):
                steps, values = norms(seeds, "raw")
                r.plot_band(row[0], steps, np.log10(spread(values)), script, linestyle=":", linewidth=1.2)
                raw = first_middle_last(spread(values).mean(0))
            critic, actor, ratio = map(first_middle_last, curves)
            rows.append([*r.row_start(seeds), critic, raw, actor, first_middle_last(curves[0] / curves[1]), ratio])
        top = 1.05 * max(axis.get_ylim()[1] for axis in row[:2])
        for axis, title in zip(row, titles):
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("million environment steps")
        for axis in row[:2]:
            axis.set(ylim=(0, top), ylabel="log10(largest / smallest norm)")
        row[0].set_ylabel(f"{key[0]}, {key[1].upper()}, {r.seed_counts(methods)}\nlog10(largest / smallest norm)")
        row[2].set(yscale="log")
        header = [*r.ROW_START, "critic spread", "critic spread × σ²", "actor spread", "critic / actor spread", "norm ratio"]
        lines += r.heading(key, methods) + r.table(header, rows)
    r.legend_below(figure)
    return "Figure 2: spread of the gradient norms, critic against actor", [*lines, NOTE_2], figure


def figure_d2(runs):
    groups, rows = r.groups(runs), []
    figure, axes = r.grid(len(groups), 3, width=4.4, height=3.4)
    for row, (key, methods) in zip(axes, groups.items()):
        seeds = methods.get("ln_popart", next(iter(methods.values())))  # the paper's, or the first method
        sides = ["actor", "critic", "raw"] if has_popart(seeds) else ["actor", "critic"]
        for axis, side in zip(row, sides):
            steps, values = norms(seeds, side)
            mean = values.mean(0)  # [C, K]
            axis.plot(steps / 1e6, mean, color="#0072B2" if side == "actor" else "#D55E00", alpha=0.45, linewidth=0.9)
            axis.plot(steps / 1e6, np.median(mean, axis=1), color="black", linewidth=1.8, label="median task")
            name = {"actor": "actor", "critic": "critic", "raw": "critic × σ²"}[side]
            axis.set(yscale="log", xlabel="million environment steps", ylabel="norm of a task's gradient")
            axis.set_title(f"{name}: {r.METHODS[seeds.script]}, {key[0]}, {key[1].upper()}, n = {len(seeds.runs)}", fontsize=9)
            axis.legend(fontsize=8)
            rows.append([r.where(*key), *r.row_start(seeds), name, first_middle_last(spread(values).mean(0))])
        bounds = np.log([axis.get_ylim() for axis in row[: len(sides)]])
        span = np.diff(bounds).max() / 2
        for axis, middle in zip(row, bounds.mean(1)):
            axis.set_ylim(np.exp(middle - span), np.exp(middle + span))  # as many decades each: spreads compare by eye
        for axis in row[len(sides) :]:
            axis.set_visible(False)
    lines = r.table(["runs", *r.ROW_START, "side", "spread, first → middle → last collect"], rows)
    return "Figure D.2: per-task gradient norms", [*lines, NOTE_D2], figure


ITEMS = {"figure_2": figure_2, "figure_d2": figure_d2}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
