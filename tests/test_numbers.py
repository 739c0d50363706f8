"""Every number in the prose of the README and of docs/ has a source.

A phrase of MEASURED is made anew from the result files and has to be on its page as it is. A phrase
of numbers.toml is a constant, with its source. A number that no phrase covers fails, so that a
changed digit does, too. Left out are code, formulas between dollar signs, the targets of links, and
references such as Table D.1 or MT50. The pages that programs write whole (docs/ladder.md,
docs/results.md, docs/choices.md) are compared with what they write; the notes in them are held to
this.
"""

import csv
import json
import random
import re
import sys
import tomllib
from collections import defaultdict
from functools import cache
from itertools import product

import pytest
from scripts import ROOT

sys.path.append(str(ROOT / "tools"))
sys.path.append(str(ROOT / "paper"))
import ladder  # noqa: E402
import published  # noqa: E402

RESULTS = ROOT / "results"
CONSTANTS = tomllib.loads((ROOT / "tests/numbers.toml").read_text())
WRITTEN_BY_PROGRAMS = {"docs/ladder.md", "docs/results.md", "docs/choices.md"}
PAGES = {"README.md", "CONTRIBUTING.md"}
PAGES |= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - WRITTEN_BY_PROGRAMS
PAGES |= {str(path.relative_to(ROOT)) for path in RESULTS.glob("**/*_note.md")}
PAGES = sorted(PAGES)

OF_THE_PAPER = r"[A-D]?\.?\d+(?:\.\d+)*"  # 4, 4.3, D.1 or .1
REFERENCES = [
    r"\b(?:Tables?|Figures?|Sections?|Eqs?\.|Equations?|Theorem|Corollary|Proposition|Algorithm"
    rf"|Remark|Tiers?|lines?|step) \(?{OF_THE_PAPER}\)?"
    rf"(?:(?:, | and | to |–|-)(?:lines? )?\(?{OF_THE_PAPER}\)?)*",
    r"\b[A-D]\.\d+\b",
    r"arXiv[ :]\d{4}\.\d{5}",
]
LADDER = {
    "Vanilla MT-PPO": "vanilla_mtppo",
    "+ LN-c": "ln",
    "+ LN-c + PopArt": "ln_popart",
    "+ LN-c + FairGrad": "ln_fairgrad",
    "+ LN-c + PopArt + FairGrad": "ln_popart_fairgrad",
    "TOPPO": "toppo_mt50",
}
WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBER = r"(?<![\w.])\d(?:[\d,.]*\d)?(?:e[+-]?\d+)?"


def prose(text):
    """A page without code, formulas, the targets of links, and references."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"(`+).+?\1", "`", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"^ *\d+\. ", "", text, flags=re.M)  # of lists
    for reference in REFERENCES:
        text = re.sub(reference, "", text)
    return " ".join(text.split())


def read(page):
    """A page's prose. The table of docs/solver.md is held by tests/test_solver_page.py."""
    text = (ROOT / page).read_text()
    if page == "docs/solver.md":
        text = re.sub(r"^\|.*$", "", text, flags=re.M)
    return prose(text)


def uncovered(text, phrases):
    """The numbers of a page's prose that are in none of the phrases, with their surroundings."""
    covered = [
        span
        for phrase in phrases
        for span in (match.span() for match in re.finditer(re.escape(phrase), text))
    ]
    return [
        text[max(0, number.start() - 40) : number.end() + 40]
        for number in re.finditer(NUMBER, text)
        if not any(start <= number.start() and number.end() <= end for start, end in covered)
    ]


# What the result files say


def success(run):
    """{step: success of each task in percent} of a run in results/, from its evals.csv."""
    found = defaultdict(list)
    with open(RESULTS / run / "evals.csv") as file:
        for row in csv.DictReader(file):
            found[int(row["step"])].append(100 * float(row["success_rate"]))
    return found


def mean(values):
    return sum(values) / len(values)


def at(step, *runs, k=None):
    """Success in percent at a step, of the k worst tasks or of all, mean over tasks and runs."""
    return mean([mean(sorted(success(run)[step])[:k]) for run in runs])


def evaluated(step, runs):
    return [run for run in runs if step in success(run)]


def is_earlier(run):
    """Whether the scripts' first version made it, which did not write its commit down."""
    return "commit" not in json.loads((RESULTS / run / "args.json").read_text())


def of_each(step, rungs):
    """{name: success of each of its runs that was evaluated at a step}"""
    return {name: [at(step, run) for run in evaluated(step, runs)] for name, runs in rungs.items()}


def seeds(step, runs, k=None):
    """The same of each run that was evaluated there, those of the first version in brackets."""
    runs = evaluated(step, runs)
    now = ", ".join(f"{at(step, run, k=k):.1f}" for run in runs if not is_earlier(run))
    earlier = ", ".join(f"{at(step, run, k=k):.1f}" for run in runs if is_earlier(run))
    return " ".join(x for x in (now, f"({earlier})" if earlier else "") if x) or "–"


@cache
def logged(run):
    """{tag: {step: value}} of a run in results/, from its scalars.csv."""
    found = defaultdict(dict)
    with open(RESULTS / run / "scalars.csv") as file:
        for row in csv.DictReader(file):
            found[row["tag"]][int(row["step"])] = float(row["value"])
    return found


def last(run, tag, step):
    """What it has logged last up to a step."""
    return max((at, value) for at, value in logged(run)[tag].items() if at <= step)[1]


def explained(run, step):
    return 100 * last(run, "explained_variance/mean", step)


def popart_narrows(run):
    """Whether it does, of each collect: the spread of the tasks' mean critic norms (largest over
    smallest) against that of the same norms times sigma^2, those of the raw loss."""
    norms = defaultdict(dict)
    sigmas = defaultdict(dict)
    for name, series in logged(run).items():
        tag, _, task = name.partition("/")
        found = {"critic_gradient_norm": norms, "popart_sigma": sigmas}.get(tag)
        if found is not None and task != "mean":
            for step, value in series.items():
                found[step][task] = value
    narrower = []
    for step in sorted(norms):
        of_popart = norms[step].values()
        raw = [norm * sigmas[step][task] ** 2 for task, norm in norms[step].items()]
        narrower.append(max(of_popart) / min(of_popart) < max(raw) / min(raw))
    return narrower


def collects_higher(tag, those, others):
    """Of each pair of runs, at how many of the first ten collects (1 M steps of MT10) tag is higher
    in the first than in the second."""
    counts = []
    for run, other in product(those, others):
        one, two = logged(run)[tag], logged(other)[tag]
        counts.append(sum(one[step] > two[step] for step in range(100_000, 1_100_000, 100_000)))
    return counts


def between(numbers):
    """The smallest and the largest, or the number where they are all the same, in words."""
    low, high = WORDS[min(numbers)], WORDS[max(numbers)]
    return low if low == high else f"{low} to {high}"


def bench(page, section, row):
    """The cells of a row of results/bench_PAGE.md, below the heading that begins with section."""
    text = (ROOT / f"results/bench_{page}.md").read_text()
    below = text.split(f"## {section}")[1].split("\n## ")[0]
    (line,) = [line for line in below.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def paths_of(*patterns):
    """The runs in results/ that match the first pattern, then the second."""
    return [
        str(path.relative_to(RESULTS))
        for pattern in patterns
        for path in sorted(RESULTS.glob(pattern))
    ]


def runs_on_mt10(script):
    """Its runs, those of the first version last."""
    return paths_of(f"mt10/{script}__?", f"mt10/earlier__{script}__?")


def unclipped_on_mt10(script):
    """The same of its runs without the value clip."""
    return paths_of(f"mt10/no_clip_{script}__?", f"choices/no_clip_vloss__{script}__?")


def measured():
    """{page: [phrase]}, each as it has to stand there."""
    phrases = {page: [] for page in PAGES}

    # Table 2: TOPPO and vanilla on MT10
    rungs = {name: runs_on_mt10(script) for name, script in LADDER.items()}
    toppo, vanilla = rungs["TOPPO"], rungs["Vanilla MT-PPO"]
    lead = {
        (step, k): at(step, *toppo, k=k) - at(step, *vanilla, k=k)
        for step in (1_000_000, 2_000_000)
        for k in (None, 5)
    }
    phrases["results/paper/table_2_note.md"] = [
        f"by {lead[1_000_000, None]:.1f} points at 1 M steps and by "
        f"{lead[2_000_000, None]:.1f} at 2 M",
        f"lead is {lead[1_000_000, 5]:.1f} points at 1 M and {lead[2_000_000, 5]:.1f} at 2 M",
    ]

    # The summary of docs/results.md: the ladder on MT10, from vanilla to TOPPO
    means = {
        step: {
            name: at(step, *evaluated(step, runs))
            for name, runs in rungs.items()
            if evaluated(step, runs)
        }
        for step in (1_000_000, 2_000_000)
    }
    ladder = "{:.1f}, {:.1f} (LN-c), {:.1f} (LN-c + PopArt), {:.1f} (LN-c + FairGrad), {:.1f} "
    ladder += "(LN-c + both) and {:.1f} % (TOPPO)"
    phrases["results/paper/summary_note.md"] = [
        f"at 1 M steps {ladder.format(*means[1_000_000].values())}",
        f"at 2 M {ladder.format(*means[2_000_000].values())}",
    ]
    apart = [max(found) - min(found) for found in of_each(1_000_000, rungs).values()]
    phrases["results/paper/summary_note.md"].append(
        f"The runs of one rung are up to {max(apart):.1f} points apart at 1 M."
    )
    for of_step in means.values():
        assert min(of_step, key=of_step.get) == "+ LN-c + FairGrad"
    of_ln = of_each(1_000_000, rungs)["+ LN-c"]
    of_vanilla = of_each(1_000_000, rungs)["Vanilla MT-PPO"]
    assert of_ln[0] > max(of_vanilla) and of_ln[1] < min(of_vanilla)
    phrases["results/paper/table_2_note.md"].append(
        f"LN-c's two have {of_ln[0]:.1f} and {of_ln[1]:.1f} % at 1 M, the first above vanilla's "
        "three and the second below"
    )
    at_2m = means[2_000_000]
    assert at(2_000_000, "mt10/vanilla_mtppo__1") < at_2m["+ LN-c + FairGrad"]
    behind = at_2m["+ LN-c + PopArt + FairGrad"] - at_2m["+ LN-c + PopArt"]
    below = [f"{at(1_000_000, run):.1f}" for run in rungs["+ LN-c + PopArt + FairGrad"]]
    above = [f"{at(1_000_000, run):.1f}" for run in toppo]
    phrases["results/paper/table_2_note.md"] += [
        f"LN-c + PopArt has {behind:.1f} points less than LN-c + both at 2 M (one run each)",
        f"at 1 M TOPPO's three runs have {above[0]}, {above[1]} and {above[2]} %, and the "
        f"two of the rung below it {below[0]} and {below[1]} %.",
    ]

    # Figure 2: where PopArt narrows the spread of the critic's norms
    of_popart = [run for run in paths_of("mt10/*__?") if "popart" in run or "toppo" in run]
    narrows = {run: popart_narrows(run) for run in of_popart}
    assert all(all(found[:10]) for found in narrows.values())
    behind_fairgrad = [
        narrows[run] for run in evaluated(2_000_000, [*toppo, *rungs["+ LN-c + PopArt + FairGrad"]])
    ]
    widens = [found.index(False) + 1 for found in behind_fairgrad]  # collects of 0.1 M steps
    assert not any(any(found[first - 1 :]) for found, first in zip(behind_fairgrad, widens))
    (without_fairgrad,) = [narrows[run] for run in evaluated(2_000_000, rungs["+ LN-c + PopArt"])]
    assert all(without_fairgrad)
    on_mt50 = popart_narrows("mt50/toppo_mt50__1")
    phrases["results/paper/figure_2_note.md"] = [
        f"In each of the first ten collects of all {WORDS[len(narrows)]} runs with it on MT10, "
        f"and in {sum(on_mt50)} of {len(on_mt50)} on MT50,",
        f"from {min(widens) / 10} to {max(widens) / 10} M steps on, in all "
        f"{WORDS[len(widens)]} runs on MT10 that end at 2 M",
        f"smaller at all {len(without_fairgrad)} collects",
    ]

    # Figure D.3: what LN-c and FairGrad do to the cosine and to the top-1 share
    cosine, share = "gradients/critic_mean_cosine", "gradients/critic_top1_share"
    ln, fairgrad = rungs["+ LN-c"], rungs["+ LN-c + FairGrad"]
    popart, both = rungs["+ LN-c + PopArt"], rungs["+ LN-c + PopArt + FairGrad"]
    without_ln = runs_on_mt10("popart")
    assert not any(collects_higher(cosine, ln, vanilla))
    assert set(collects_higher(cosine, popart, without_ln)) == {10}
    assert not any(collects_higher(share, fairgrad, ln) + collects_higher(share, both, popart))
    shares = [*collects_higher(share, ln, vanilla)], [*collects_higher(share, popart, without_ln)]
    cosines = [10 - n for n in collects_higher(cosine, fairgrad, ln)]
    cosines_popart = [10 - n for n in collects_higher(cosine, both, popart)]
    phrases["results/paper/figure_d3_note.md"] = [
        f"without PopArt at {between(shares[0])} of the ten, in {WORDS[len(shares[0])]} pairs, and "
        f"with it at {between(shares[1])}, in {WORDS[len(shares[1])]}",
        f"without PopArt in all {WORDS[len(ln) * len(vanilla)]} pairs, at all ten collects",
        f"at {between(cosines)} of the ten collects without PopArt and at "
        f"{between(cosines_popart)} with it",
    ]

    # Choices at 0.5 M steps: seed 1 of the first version, with the choice and without
    half, one = 500_000, 1_000_000
    unclipped_vanilla = "mt10/no_clip_vanilla_mtppo__1"
    unclipped_toppo = "mt10/no_clip_toppo_mt50__1"
    unclipped_ln, unclipped_popart = "mt10/no_clip_ln__1", "mt10/no_clip_ln_popart__1"
    toppo_1 = "mt10/earlier__toppo_mt50__1"
    unclipped_fairgrad = "mt10/no_clip_ln_fairgrad__1"
    without_clip = {
        "vanilla": unclipped_on_mt10("vanilla_mtppo"),
        "LN-c": [unclipped_ln],
        "LN-c + PopArt": [unclipped_popart],
        "LN-c + FairGrad": unclipped_on_mt10("ln_fairgrad"),
        "TOPPO": unclipped_on_mt10("toppo_mt50"),
    }
    freed = {name: at(one, *evaluated(one, runs)) for name, runs in without_clip.items()}
    epsilon = "mt10/earlier__ln_popart__1", "choices/adam_eps_1e-8__ln_popart__1_earlier"
    new_epsilon = "mt10/ln_popart__1", "choices/adam_eps_1e-8__ln_popart__1"
    phrases["results/paper/table_2_note.md"].append(
        f"vanilla has {at(one, unclipped_vanilla):.1f} and TOPPO {at(one, unclipped_toppo):.1f} % "
        "at 1 M (one run each)"
    )
    phrases["results/paper/table_d1_note.md"] = [
        f"LN-c + PopArt has {at(half, epsilon[0]):.1f} % with 1e-5 and "
        f"{at(half, epsilon[1]):.1f} % with 1e-8, and explains "
        f"{explained(epsilon[0], half):.0f} % of the variance against "
        f"{explained(epsilon[1], half):.0f} %",
        f"vanilla from {at(half, *vanilla):.1f} to {at(half, *without_clip['vanilla']):.1f} % (the "
        f"mean of three runs, and of two), LN-c from {at(half, *ln):.1f} to "
        f"{at(half, unclipped_ln):.1f} % (two and one) and LN-c + FairGrad from "
        f"{at(half, *fairgrad):.1f} to {at(half, *without_clip['LN-c + FairGrad']):.1f} % "
        "(two each)",
        f"at 1 M steps it has {at(one, unclipped_popart):.1f} % without the clip (one run), and "
        f"{' and '.join(f'{at(one, run):.1f}' for run in popart)} % with it.",
        "TOPPO has {TOPPO:.1f} %, LN-c + FairGrad {LN-c + FairGrad:.1f} %, LN-c {LN-c:.1f} %, "
        "vanilla {vanilla:.1f} % and LN-c + PopArt {LN-c + PopArt:.1f} % (one run each)".format(
            **freed
        ),
        "Another pair of runs agrees "
        f"({at(half, new_epsilon[0]):.1f} and {at(half, new_epsilon[1]):.1f} %), and at 1 M the "
        f"one run with 1e-8 that got there has {at(one, new_epsilon[1]):.1f} %, where the two with "
        f"1e-5 have {' and '.join(f'{at(one, run):.1f}' for run in popart)} %.",
    ]
    rise = at(half, unclipped_ln) - at(half, *ln)
    assert rise > at(half, *without_clip["LN-c + FairGrad"]) - at(half, *fairgrad)
    with_other_epsilon = at(one, new_epsilon[1])
    assert abs(with_other_epsilon - at(one, *toppo)) < 2
    phrases["README.md"].append(
        f"and LN-c + PopArt has {with_other_epsilon:.1f} % with ε = 1e-8 (one run)"
    )
    phrases["results/paper/summary_note.md"] += [
        "vanilla has {vanilla:.1f}, LN-c {LN-c:.1f}, LN-c + PopArt {LN-c + PopArt:.1f}, LN-c + "
        "FairGrad {LN-c + FairGrad:.1f} and TOPPO {TOPPO:.1f} % (one run each)".format(**freed),
        f"and Adam's ε = 1e-8 LN-c + PopArt has {with_other_epsilon:.1f} %",
    ]
    phrases["results/paper/table_2_note.md"].append(
        f"LN-c + FairGrad then has {freed['LN-c + FairGrad'] - freed['LN-c']:.1f} more than LN-c, "
        f"and TOPPO {freed['TOPPO'] - freed['LN-c + FairGrad']:.1f} more than that"
    )
    of_fairgrad = without_clip["LN-c + FairGrad"]
    fairgrad_half = [f"{at(half, run):.1f}" for run in of_fairgrad]
    with_clip = {f"{at(half, run):.1f}" for run in fairgrad}
    fairgrad_one = [f"{at(one, run):.1f}" for run in (unclipped_fairgrad, *fairgrad)]
    ln_half, ln_one = ([f"{at(step, run):.1f}" for run in ln] for step in (half, one))
    assert len(set(ln_half)) == 1
    ln_without = f"LN-c has {at(half, unclipped_ln):.1f} % without it (one run) and {ln_half[0]} % "
    ln_without += f"with it (both runs), and at 1 M {at(one, unclipped_ln):.1f} % without it, and "
    ln_without += f"{' and '.join(ln_one)} % with it"
    phrases["results/paper/table_2_note.md"].append(
        f"LN-c has {at(one, unclipped_ln) - at(one, unclipped_vanilla):.1f} points more than "
        f"vanilla at 1 M, and {at(one, unclipped_ln) - at(one, unclipped_popart):.1f} more than "
        "LN-c + PopArt (one run each)"
    )
    assert len(toppo) == len(vanilla) == 3
    leads = [lead[one, None], at(one, unclipped_toppo) - at(one, unclipped_vanilla)]
    phrases["results/paper/summary_note.md"].append(
        "On MT10 at 1 M steps TOPPO's lead over vanilla is {:.1f} points, and {:.1f} where "
        "neither has the clip (one run each)".format(*leads)
    )
    phrases["README.md"] += [
        f"leads vanilla by {leads[0]:.1f} points at 1 M steps and by {lead[2_000_000, None]:.1f} "
        f"at 2 M, in the five worst tasks by {lead[one, 5]:.1f} and by {lead[2_000_000, 5]:.1f}",
        f"leads, at 1 M, by {leads[1]:.1f} points over vanilla, by "
        f"{freed['TOPPO'] - freed['LN-c']:.1f} over LN-c and by "
        f"{freed['TOPPO'] - freed['LN-c + FairGrad']:.1f} over LN-c + FairGrad (one run each)",
    ]
    of_toppo = [at(half, run) for run in toppo]
    phrases["results/choices/choices_note.md"] = [
        f"At 0.5 M steps TOPPO's runs are up to {max(of_toppo) - min(of_toppo):.1f} points apart",
        ln_without,
        f"Without it {' and '.join(fairgrad_half)} % at 0.5 M steps, with it {', '.join(with_clip)}"
        f" % in both runs, and at 1 M {fairgrad_one[0]} % instead of "
        f"{' and '.join(fairgrad_one[1:])} %.",
        f"at 1 M {with_other_epsilon:.1f} % (one run), where those with 1e-5 have "
        f"{' and '.join(f'{at(one, run):.1f}' for run in popart)} %",
        "it stops {:.0f} % of the samples in the first collect and {:.0f} % in the fifth".format(
            *[100 * last(toppo_1, "losses/value_clip_fraction", step) for step in (100_000, half)]
        ),
        f"vanilla has {at(half, *without_clip['vanilla']):.1f} % at 0.5 M steps instead of "
        f"{at(half, *vanilla):.1f} % (the mean of two runs, and of three) and explains "
        f"{mean([explained(run, half) for run in without_clip['vanilla']]):.0f} % of the variance "
        f"instead of {mean([explained(run, half) for run in vanilla]):.0f} %",
        f"The one run without it has {freed['LN-c + PopArt']:.1f} % at 1 M steps, between the two "
        f"with it ({' and '.join(f'{at(one, run):.1f}' for run in popart)} %)",
    ]
    pairs = [
        at(step, run) - at(step, other)
        for step, run, other in (
            (half, "choices/no_clip_vloss__toppo_mt50__1", toppo_1),
            (half, unclipped_toppo, "mt10/toppo_mt50__1"),
            (one, unclipped_toppo, "mt10/toppo_mt50__1"),
        )
    ]
    apart = [at(one, run) for run in toppo]
    phrases["results/choices/choices_note.md"].append(
        f"by {pairs[0]:.1f} and {pairs[1]:.1f} points at 0.5 M steps and by {pairs[2]:.1f} at 1 M. "
        f"But TOPPO's runs are up to {max(apart) - min(apart):.1f} points apart at 1 M"
    )

    # The run of TOPPO on MT10 over the paper's 20 M steps
    full = "mt10/full/toppo_mt50__1"
    final = published.FINAL["toppo_mt50", "MT10", "v2"]
    late = {step: at(step, full) for step in success(full) if step >= 6_000_000}
    lowest, highest, end = min(late.values()), max(late.values()), max(late)
    assert end == 20_000_000
    ends = f"{at(end, full):.1f}"
    all_of = f"{lowest:.1f} to {highest:.1f} %"
    phrases["README.md"] += [
        f"has {ends} % after the paper's 20 M steps, where the paper has {final:.1f}, the mean",
        f"ends at {ends} % and has {all_of} in its evaluations from 6 M on",
    ]
    phrases["results/paper/summary_note.md"].append(
        f"has {ends} % after 20 M steps, where the paper has {final:.1f} (the mean of ten seeds), "
        f"and {all_of} in its evaluations from 6 M on"
    )
    shown = [1_000_000, 2_000_000, 4_000_000, 6_000_000, 12_000_000, end]
    mean_of = [f"{at(step, full):.1f}" for step in shown]
    worst_of = [f"{at(step, full, k=5):.1f}" for step in shown]
    lowest_at = min(late, key=late.get)
    best_at = " and ".join(f"{step / 1e6:g}" for step in late if late[step] == highest)
    learned = [sum(x == 100 for x in success(full)[step]) for step in shown[:2]]
    push_task, pick_place_task = 1, 2  # in MT10's order
    push = [success(full)[step][push_task] for step in (lowest_at, 18_000_000, end)]
    half_of = [
        min(step for step in success(full) if success(full)[step][task] >= 50) for task in range(10)
    ]
    *_, second_to_last, last_one = sorted(half_of)
    assert (half_of[push_task], half_of[pick_place_task]) == (second_to_last, last_one)
    entropy = logged(full)["losses/entropy"]
    calmest = min(entropy, key=entropy.get)
    phrases["results/mt10/full/paper/summary_note.md"] = [
        f"Success is {mean_of[0]} % at 1 M steps, {mean_of[1]} at 2 M, {mean_of[2]} at 4 M, "
        f"{mean_of[3]} at 6 M, {mean_of[4]} at 12 M and {mean_of[5]} at 20 M, "
        f"and in the five worst tasks {', '.join(worst_of[:-1])} and {worst_of[-1]}.",
        f"The paper has {final:.1f} % at 20 M, the mean of ten seeds; this run has {ends}, "
        f"and in its evaluations from 6 M steps on {all_of}.",
        f"The highest is {highest:.1f} %, at {best_at} M.",
        f"{lowest:.1f} %, the lowest from 6 M on, is at {lowest_at / 1e6:g} M, "
        f"where push has {push[0]:.0f} % between {push[1]:.0f} at 18 M and {push[2]:.0f} at 20 M",
        f"push and pick-place, the last two, first have 50 % or more at "
        f"{second_to_last / 1e6:g} and {last_one / 1e6:g} M",
        f"entropy falls from {entropy[100_000]:.2f} in the first collect to "
        f"{entropy[calmest]:.2f} at {calmest / 1e6:g} M, "
        f"and rises to {entropy[end]:.2f} at the end",
        f"{WORDS[learned[0]]} have 100 % at 1 M steps, {WORDS[learned[1]]} at 2 M",
    ]
    speeds = [logged(full)[f"speed/{part}_steps_per_second"] for part in ("rollout", "update")]
    hours_of_full = sum(100_000 / value for speed in speeds for value in speed.values()) / 3600
    wider = [not narrow for narrow in popart_narrows(full)]  # of each collect; fifty are 5 M steps
    first = wider.index(True)
    phrases["results/paper/figure_2_note.md"].append(
        f"it is larger in {sum(wider[first:50])} of the {50 - first} collects from "
        f"{(first + 1) / 10} to 5 M steps, and in {sum(wider[50:])} of the {len(wider) - 50} after"
    )

    # README's tour
    tour_ends = [f"{at(120_000, f'quick_tour/seed_{seed}') / 100:.2f}" for seed in (1, 2)]
    (minutes, seconds) = re.search(
        r"real\t(\d+)m([\d.]+)s", (ROOT / "results/quick_tour/log.txt").read_text()
    ).groups()
    tour = f"takes about {int(minutes) + float(seconds) / 60:.0f} minutes and "
    tour += f"ends at a success of {tour_ends[0]} (a second seed: {tour_ends[1]})"
    phrases["README.md"].append(tour)

    # README's table: seeds of one rung side by side, and without the value clip
    for name, runs in rungs.items():
        cells = [seeds(1_000_000, runs), seeds(1_000_000, unclipped_on_mt10(LADDER[name]))]
        cells += [seeds(2_000_000, runs)]
        cells += [seeds(1_000_000, runs, k=5), seeds(2_000_000, runs, k=5)]
        phrases["README.md"].append(f"| {' | '.join([name, *cells])} |")

    of_toppo = [at(1_000_000, run) for run in toppo]
    spread = max(of_toppo) - min(of_toppo)
    phrases["README.md"].append(
        f"TOPPO's three runs with it are up to {spread:.1f} points apart there"
    )

    # MT50: the paper's curves and ours
    papers = {
        script: {point.step * 1_000_000: point.success for point in curve}
        for script, curve in published.CURVES.items()
    }
    ours = {script: f"mt50/{script}__1" for script in papers}
    seeds_of = {"toppo_mt50": [ours["toppo_mt50"]]}
    seeds_of["vanilla_mtppo"] = [ours["vanilla_mtppo"], "mt50/vanilla_mtppo__2"]
    other_eps = {
        "toppo_mt50": ["choices/adam_eps_1e-8__toppo_mt50__1"],
        "vanilla_mtppo": [f"choices/adam_eps_1e-8__vanilla_mtppo__{seed}" for seed in (1, 2)],
    }
    columns = (1_000_000, 2_000_000, 4_000_000, 6_000_000)
    for script, name in (("toppo_mt50", "TOPPO"), ("vanilla_mtppo", "Vanilla MT-PPO")):
        rows = {
            f"{name}, the paper": [f"{papers[script][step]:.1f}" for step in columns],
            f"{name}, ours": [seeds(step, seeds_of[script]) for step in columns],
        }
        phrases["README.md"] += [f"| {label} | {' | '.join(x)} |" for label, x in rows.items()]

    def listed(words):
        return ", ".join(words[:-1]) + " and " + words[-1]

    # Vanilla without the value clip, there
    controls = paths_of("mt50/no_clip_vanilla_mtppo__?")
    cells = [seeds(step, controls) for step in columns]
    phrases["README.md"].append(f"| Vanilla MT-PPO, no value clip, ours | {' | '.join(cells)} |")
    steps = sorted({step for run in controls for step in success(run)} - {0})
    at_steps = f"{listed([f'{step / 1e6:g}' for step in steps])} M steps"
    reached = listed([f"{at(step, *evaluated(step, controls)):.1f}" for step in steps])
    of_toppo = listed([f"{at(step, ours['toppo_mt50']):.1f}" for step in steps])
    phrases["results/paper/summary_note.md"].append(
        f"without the value clip vanilla has {reached} % at {at_steps} (the mean of two seeds, one "
        f"from {min(set(steps) - success(controls[0]).keys()) / 1e6:g} M on), and TOPPO, with it, "
        f"{of_toppo} % (one seed)"
    )
    leads = {
        step: [at(step, run) - at(step, ours["toppo_mt50"]) for run in evaluated(step, controls)]
        for step in steps
    }
    before = [step for step in steps if min(leads[step]) > 0]
    behind = [step for step in steps if max(leads[step]) < 0]
    assert before == steps[: len(before)] and behind == steps[-len(behind) :]
    ahead_at = f"ahead of TOPPO at {listed([f'{step / 1e6:g}' for step in before])} M steps"
    behind_at = f"{-leads[steps[-1]][0]:.1f} points behind it at {steps[-1] / 1e6:g} M"
    for page in ("results/paper/table_2_note", "results/paper/table_figure_1_note"):
        phrases[f"{page}.md"].append(f"{ahead_at}, in both of its runs, and {behind_at}")
    phrases["README.md"].append(f"{ahead_at} and {behind_at}")
    papers_2m = papers["vanilla_mtppo"][2_000_000]
    off = max(abs(at(2_000_000, run) - papers_2m) for run in seeds_of["vanilla_mtppo"])
    without = " and ".join(f"{at(2_000_000, run):.1f}" for run in controls)
    phrases["results/choices/choices_note.md"] += [
        f"Without the clip vanilla has {without} % at 2 M steps, where the paper's vanilla has "
        f"{papers_2m:.1f} % and ours with the clip is at most {off:.1f} points from it, two seeds "
        "each.",
        f"TOPPO, with the clip, has {at(2_000_000, ours['toppo_mt50']):.1f} % there.",
    ]
    above = [
        at(step, run) - published.papers_success("vanilla_mtppo", step / 1e6)
        for step in steps
        for run in evaluated(step, controls)
    ]
    phrases["results/paper/table_figure_1_note.md"].append(
        f"it is {min(above):.1f} to {max(above):.1f} points above the paper's vanilla"
    )

    steps = sorted(set.intersection(*(success(ours[x]).keys() & papers[x] for x in papers)))
    both = {
        script: (
            listed([f"{at(step, ours[script]):.1f}" for step in steps]),
            listed([f"{papers[script][step]:.1f}" for step in steps]),
        )
        for script in papers
    }
    millions = listed([f"{step / 1e6:g}" for step in steps])
    second = [f"{at(step, seeds_of['vanilla_mtppo'][1]):.1f}" for step in (10**6, 2 * 10**6)]
    phrases["results/paper/summary_note.md"] += [
        f"a second one of vanilla has {listed(second)} at 1 and 2 M",
        f"success is, at {millions} M steps, {both['toppo_mt50'][0]} % for TOPPO, where the paper "
        f"has {both['toppo_mt50'][1]}, and {both['vanilla_mtppo'][0]} % for vanilla, where it has "
        f"{both['vanilla_mtppo'][1]}.",
    ]

    both_have = max(success(ours["toppo_mt50"]).keys() & success(ours["vanilla_mtppo"]).keys())
    apart = [
        abs(at(step, run) - papers[script][step])
        for script in papers
        for run in seeds_of[script]
        for step in success(run).keys() & papers[script].keys()
    ]
    assert max(apart) < 5  # the paper's band
    low, high = {}, {}
    for eps, runs in (("1e-8", other_eps), ("1e-5", seeds_of)):
        differences = [
            at(step, run) - papers["vanilla_mtppo"][step]
            for run in runs["vanilla_mtppo"]
            for step in (1_000_000, 2_000_000)
        ]
        low[eps], high[eps] = min(differences), max(differences)
    phrases["README.md"] += [
        f"On MT50, to {both_have / 1e6:g} M of the paper's 100 M steps",
        f"with a success of {ends} % after {end / 1e6:g} M steps,",
        f"with {at(both_have, ours['toppo_mt50']):.1f} % after {both_have / 1e6:g} M.",
        f"With PyTorch's 1e-8 vanilla is {low['1e-8']:.1f} to {high['1e-8']:.1f} points above the "
        "paper's curve at 1 and 2 M steps; with 1e-5 it differs by "
        f"{low['1e-5']:.1f} to {high['1e-5']:.1f} (two seeds each)",
    ]
    ahead = at(both_have, ours["toppo_mt50"]) - at(both_have, ours["vanilla_mtppo"])
    papers_ahead = papers["toppo_mt50"][both_have] - papers["vanilla_mtppo"][both_have]
    phrases["results/paper/table_figure_1_note.md"] += [
        f"At {both_have / 1e6:g} M steps TOPPO is {ahead:.1f} points ahead of vanilla, and the "
        f"paper's curves are {papers_ahead:.1f} apart.",
        f"at {both_have / 1e6:g} M steps the twenty worst tasks",
    ]
    control = at(both_have, *evaluated(both_have, controls))
    gain = control - at(both_have, ours["vanilla_mtppo"])
    assert gain > ahead / 2
    phrases["results/paper/table_figure_1_note.md"].append(
        f"At {both_have / 1e6:g} M steps it is {gain:.1f} points above vanilla with the clip"
    )
    of_all = [*ours.values(), *evaluated(both_have, controls)]
    assert not any(at(both_have, run, k=20) for run in of_all)
    step = 2_000_000
    toppo_at = f"{at(step, ours['toppo_mt50']):.1f} %"
    vanilla_at = " and ".join(f"{at(step, run):.1f}" for run in seeds_of["vanilla_mtppo"])
    vanilla_other = " and ".join(f"{at(step, run):.1f}" for run in other_eps["vanilla_mtppo"])
    phrases["results/choices/choices_note.md"] += [
        f"At 2 M steps the paper's curve has {papers['vanilla_mtppo'][step]:.1f} %. With 1e-5 "
        f"vanilla has {vanilla_at} % (two seeds), with 1e-8 {vanilla_other} %.",
        f"TOPPO has {toppo_at} with 1e-5 and {seeds(step, other_eps['toppo_mt50'])} % with 1e-8 "
        f"at 2 M, where the paper has {papers['toppo_mt50'][step]:.1f} %",
    ]

    # docs/speed.md
    collect = bench("end_to_end", "MT10", "toppo_mt50.py")[2]
    to_vanilla = bench("end_to_end", "MT10", "TOPPO to vanilla")[2]

    def both(page, row, column):
        return " | ".join(bench(page, name, row)[column] for name in ("MT10", "MT50"))

    phrases["docs/speed.md"] = [
        f"| rollout with the policy, steps/s | {both('rollout', 'ours', 1)} |",
        f"| the same on EnvPool | {both('rollout', 'EnvPool', 1)} |",
        f"| the same by Meta-World's `, sync | {both('rollout', 'make_vec, sync', 1)} |",
        f"| the same by Meta-World's `, async | {both('rollout', 'make_vec, async', 1)} |",
        "| time of K critic gradients, Gram, FairGrad and combination, to that of one backward "
        "pass of the mean loss | "
        f"{both('per_task_gradients', 'ours, `vmap(grad)`', 3)} |",
        "| the same by K backward passes | "
        f"{both('per_task_gradients', 'a backward per task, `retain_graph`', 3)} |",
        f"| a whole collect of TOPPO, seconds | {collect} | – |",
        f"| the same, to vanilla's seconds | {to_vanilla} | – |",
    ]

    # Hours, without evaluations: the paper's 200 collects
    update = float(bench("end_to_end", "MT10", "toppo_mt50.py")[1])
    rate = int(bench("rollout", "MT50", "ours")[1].replace(",", ""))
    mt10_seconds, mt50_seconds = float(collect), 500_000 / rate + 5 * update
    hours = [200 * seconds / 3600 for seconds in (mt10_seconds, mt50_seconds)]
    evaluations = {
        name: 51 * 50 * 500 * num_tasks / int(rates.replace(",", "")) / 3600
        for name, num_tasks in (("MT10", 10), ("MT50", 50))
        for rates in [bench("rollout", name, "ours")[1]]
    }
    phrases["README.md"].append(
        f"MT10 takes about {hours[0]:.0f} hours and MT50 about {hours[1]:.0f}"
    )
    phrases["docs/running.md"] = [
        f"a whole run of TOPPO on MT10 took {hours_of_full:.1f} hours without evaluations",
        f"| MT10, 20 M steps | {mt10_seconds:.0f} s, measured | {hours[0]:.0f} h |",
        f"| MT50, 100 M steps | {mt50_seconds:.0f} s: {500_000 / rate:.0f} s at the measured "
        f"{rate:,} steps/s, and 5 times MT10's update | {hours[1]:.0f} h |",
        f"{bench('end_to_end', 'MT10', 'toppo_mt50.py')[3]} MB",
        f"by default 51 with 50 episodes of each task, at the rollout's speed at most "
        f"{evaluations['MT10']:.1f} h on MT10 and {evaluations['MT50']:.1f} h on MT50",
    ]
    return phrases


MEASURED = measured()


def phrases_of(page):
    return [*CONSTANTS.get(page, {}), *CONSTANTS["everywhere"], *MEASURED[page]]


@pytest.mark.parametrize("page", PAGES)
def test_every_number_has_a_source(page):
    assert uncovered(read(page), phrases_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_what_was_measured_and_what_is_constant_is_on_the_page(page):
    text = read(page)
    absent = [
        phrase for phrase in [*MEASURED[page], *CONSTANTS.get(page, {})] if phrase not in text
    ]
    assert absent == [], f"{page} does not say this, or not so"


def test_sources_are_named():
    for page, phrases in CONSTANTS.items():
        assert page == "everywhere" or page in PAGES, page
        for phrase, source in phrases.items():
            assert re.search(NUMBER, phrase), f"{page}: {phrase!r} has no number"
            assert len(source) > 3, f"{page}: {phrase!r} has no source"


def test_changed_lines_of_the_ladder():
    rows = re.findall(r"^\| \[`(\S+)`\].*\| (\d+) \|$", (ROOT / "README.md").read_text(), re.M)
    parents = {script: parent for parent, script in ladder.edges()}
    counted = {
        script: str(ladder.num_changed(ladder.hunks(parents[script], script))) for script, _ in rows
    }
    assert len(rows) == 5
    assert dict(rows) == counted


def test_the_readmes_diff_is_the_scripts():
    (shown,) = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    changes = [line for line in shown.splitlines() if line]
    hunks = ladder.hunks("ablations/ln_popart.py", "ablations/ln_popart_fairgrad.py")
    changed = [line for hunk in hunks for line in hunk.changed()]
    assert len(changes) == 6
    assert [line for line in changed if line in changes] == changes
    logged = [line for line in changed if line not in changes and line.strip("+")]
    assert len([line for line in logged if "metrics" in line]) == 2  # its function and its call


def test_a_changed_digit_is_noticed():
    """In twenty places, drawn at random."""
    rng = random.Random(0)
    for _ in range(20):
        digits = []
        while not digits:  # some notes have none
            page = rng.choice(PAGES)
            text = read(page)
            digits = [number.start() for number in re.finditer(r"(?<![\w.])\d", text)]
        digit = rng.choice(digits)
        new = rng.choice([x for x in "0123456789" if x != text[digit]])
        changed = text[:digit] + new + text[digit + 1 :]
        absent = [phrase for phrase in phrases_of(page) if phrase in text and phrase not in changed]
        assert absent or uncovered(changed, phrases_of(page)), (page, text[digit - 30 : digit + 9])
