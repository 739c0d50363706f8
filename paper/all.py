"""All tables and figures that some runs allow, and one page that shows them.

    python paper/all.py runs/

Writes NAME.md and NAME.png to runs/paper (--out) and the page runs/paper/index.md (--page). What
the runs do not allow is listed there with the command that makes what is missing. Each script of
this folder makes its own tables or figures alone: python paper/SCRIPT.py --help.

A text in OUT/NAME_note.md, written by hand, is shown under table or figure NAME, and one in
OUT/summary_note.md at the top, if it is of these runs: its first line is <!-- runs: HASH -->, with
the hash of all runs on one task set and reward, or several hashes. --show-hashes prints them.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import runs as r
import tyro

SCRIPTS = [
    "table_2_d4_worst_k",
    "figure_1_4_d6_d7_learning_curves",
    "table_steps_to_match",
    "table_3_d3_iqm",
    "table_d1_cube",
    "table_d2_combiners",
    "figure_2_d2_norm_spread",
    "figure_3_d1_critic_grams",
    "figure_d3_ln_fairgrad",
    "figure_d4_contributions",
    "table_d5_d6_d7_per_task",
    "figure_d8_d9_d10_per_task_curves",
    "table_d10_four_metrics",
    "table_d11_best_step",
    "table_b2_parameters",
]
INTRODUCTION = """\
The paper trains for 20 M steps on MT10 and 100 M on MT50 with 10
seeds: with fewer seeds or steps, the numbers of these runs are no estimate of the paper's. Each
section compares runs at the same step. Success is in percent."""
HEADER = ["run", "tasks", "reward", "method", "script", "seed", "commit", "steps", "dumps"]
LONGEST = 100  # lines of a Markdown file that the page shows; a longer one gets the link only


@dataclass
class Args(r.Args):
    page: Path | None = None
    """the page that shows all; none: index.md in the folder of --out"""
    show_hashes: bool = False
    """print the hash of the runs on each task set and reward, for the first line of a note, and
    write nothing"""


def hashes_of(runs):
    """{"MT10, V2": hash of all runs there}."""
    found = {}
    for key in sorted({(run.task_set, run.reward) for run in runs}):
        same = [run for run in runs if (run.task_set, run.reward) == key]
        found[f"{key[0]}, {key[1].upper()}"] = r.hash_of(same)
    return found


def section(name, title, lines, note, folder, link):
    """A table, or a figure with its legend, a note written by hand, and a link to all of it.

    The numbers of a figure are not on the page, as most of them are in its tables, too.
    """
    found = [f"## {title}", ""]
    contents = f"[{name}.md]({link}/{name}.md)"
    if (folder / f"{name}.png").exists():
        found += [f"![{title}]({link}/{name}.png)", ""]
        rows = [index for index, line in enumerate(lines) if line.startswith("|")]
        if rows and name.startswith("figure"):
            lines = lines[rows[-1] + 2 :]  # what follows the last table and its blank line
            contents = f"[its numbers]({link}/{name}.md)"
    if len(lines) <= LONGEST:
        found += [f"#{line}" if line.startswith("#") else line for line in lines]  # a level down
        if lines and lines[-1]:
            found.append("")
    else:
        found += ["It is too long for this page:", ""]
    if note:
        found += [*note, ""]
    return [*found, contents, ""]


def main():
    args = tyro.cli(Args, description=__doc__)
    out = args.out or r.default_out(args.runs)
    index = args.page or out / "index.md"
    try:
        runs = r.load_runs(args.runs)
        if not runs:
            command = "python paper/all.py runs/"
            raise r.Missing(
                f"no runs given; expected run directories, or folders of them: {command}"
            )
    except r.Missing as reason:
        r.fail(reason)
    hashes = hashes_of(runs)
    if args.show_hashes:
        for name, value in hashes.items():
            print(f"{name}: {value}")
        return
    rows = [
        [
            run.path.name,
            run.task_set,
            run.reward.upper(),
            r.METHODS[run.script],
            f"`{r.SCRIPT_PATHS[run.script]}`",
            run.seed,
            r.commit(run),
            r.millions(run.steps[-1]),
            len(r.dump_files(run)),
        ]
        for run in runs
    ]
    made_by = f"Made by `python paper/all.py {shlex.join(sys.argv[1:])}`."
    page = ["# The paper's tables and figures, from our runs", "", made_by, INTRODUCTION, ""]
    command = f"python paper/all.py {shlex.join(map(str, args.runs))} --show-hashes"
    summary = r.read_note(out / "summary_note.md", hashes.values(), command)
    if summary:
        page += [*summary, ""]
    page += ["## The runs", "", *r.table(HEADER, rows)]

    link = Path(os.path.relpath(out, index.parent)).as_posix()
    skipped = []
    for script in SCRIPTS:
        for name, result in r.produce(import_module(script).ITEMS, runs, out).items():
            if isinstance(result, r.Missing):
                skipped.append(f"- {name.replace('_', ' ')}: {result}")
            else:
                note = r.read_note(out / f"{name}_note.md", hashes.values(), command)
                page += section(name, *result, note, out, link)

    # Figure D.5's own script made it, without runs
    link = Path(os.path.relpath(r.ROOT / "results", index.parent)).as_posix()
    theorem = f"[figure_d5_theorem1.md]({link}/figure_d5_theorem1.md)"
    page += ["## Figure D.5: Theorem 1 in numbers", ""]
    page += [f"![Figure D.5]({link}/figure_d5_theorem1.png)", ""]
    page += [f"{theorem}, by `python paper/figure_d5_theorem1.py`", ""]

    page += ["## Not made", "", *(skipped or ["Everything was."])]
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text("\n".join(page).rstrip() + "\n")
    print(f"wrote {index}; not made: {len(skipped)} tables or figures, listed at its end")


if __name__ == "__main__":
    main()
