"""Tables and figures of success, from run directories written here.

Expected numbers are worked out by hand.
"""

import csv
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
from scripts import ROOT
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

sys.path.append(str(ROOT / "paper"))
import runs as r  # noqa: E402

ALL = import_module("all")
ITEMS = {
    name: function
    for script in ALL.SCRIPTS
    for name, function in import_module(script).ITEMS.items()
}
TEN = [f"task{k}-v3" for k in range(10)]
RAMP = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
HALVES = [0.3] * 5 + [0.9] * 5
THREE = ["c-v3", "b-v3", "a-v3"]


def write_run(path, script, seed, success, scalars=None, tasks=TEN, goals=None, **args):
    """Writes a run directory.

    success: {step: rate or K rates}; goals: {step: how many}, 50 if not said; scalars:
    {tag: {step: value}}, written as TensorBoard events.
    """
    path.mkdir(parents=True)
    given = {
        "script": script,
        "seed": seed,
        "benchmark": "MT10",
        "tasks": [],
        "reward_version": "v2",
        "num_steps": 500,
        **args,
    }
    (path / "args.json").write_text(json.dumps(given))
    lines = ["step,task,episodes,success_rate,mean_return"]
    for step, rates in success.items():
        pairs = zip(tasks, np.broadcast_to(rates, len(tasks)))
        episodes = (goals or {}).get(step, 50)
        lines += [f"{step},{task},{episodes},{rate},0.0" for task, rate in pairs]
    (path / "evals.csv").write_text("\n".join(lines) + "\n")
    if scalars:
        writer = EventFileWriter(str(path))
        for tag, series in scalars.items():
            for step, value in series.items():
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.add_event(Event(step=step, summary=summary))
        writer.close()
    return path


def make(name, paths, out):
    """The lines of table or figure NAME as a script writes it to out.

    A PNG is there for figures, and beside the differences from the paper's Figure 1.
    """
    made = r.produce({name: ITEMS[name]}, r.load_runs(paths), out)[name]
    if isinstance(made, r.Missing):
        raise made
    has_picture = name.startswith("figure") or name == "table_figure_1"
    assert (out / f"{name}.png").exists() == has_picture
    if has_picture:
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    return (out / f"{name}.md").read_text().splitlines()


def rows(lines, start):
    """The cells, after the first, of the rows that begin with start."""
    found = [line for line in lines if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in found]


def cells(lines, start):
    """Those of the one row that there is."""
    (row,) = rows(lines, start)
    return row


def row(lines, start):
    """Those of the one row that there is, as one string."""
    return " | ".join(cells(lines, start))


def first_column(lines):
    return [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of TOPPO and one of other scripts on MT10 with V2 rewards, to 800,000 steps."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "toppo1", "toppo_mt50", 1, {0: 0, 400_000: 0.5, 800_000: RAMP})
    write_run(folder / "toppo2", "toppo_mt50", 2, {0: 0, 400_000: 0.7, 800_000: HALVES})
    write_run(folder / "vanilla", "vanilla_mtppo", 1, {0: 0, 400_000: 0.2, 800_000: [0] * 9 + [1]})
    finals = {
        "ln": 0.2,
        "ln_popart": 0.3,
        "ln_fairgrad": 0.4,
        "ln_popart_fairgrad": 0.45,
        "popart": 0.15,
        "popart_fairgrad": 0.1,
    }
    for script, rate in finals.items():
        write_run(folder / script, script, 1, {0: 0, 400_000: 0.1, 800_000: rate})
    return folder


def test_table_2(runs, tmp_path):
    """TOPPO: means 55 and 60, std 5 / sqrt 2; worst 1: 10 and 30; 3: 20 and 30; 5: 30 and 30."""
    lines = make("table_2", [runs], tmp_path)
    assert "## MT10, V2, 0.8 M steps of the paper's 20 M" in lines
    assert "Few seeds, n = 1 to 2; the paper has 10." in lines
    header = "n | mean of 10 | paper's mean | worst 1 | worst 3 | worst 5"
    assert row(lines, "method") == header
    toppo = "2 | 57.5 (55.0, 60.0) | 97.2 at 20 M"
    toppo += " | 20.0 (10.0, 30.0) | 25.0 (20.0, 30.0) | 30.0 (30.0, 30.0)"
    assert row(lines, "TOPPO") == toppo
    assert row(lines, "Vanilla MT-PPO") == "1 | 10.0 | – | 0.0 | 0.0 | 0.0"
    ladder = ["Vanilla MT-PPO", "+LN-c", "+LN-c +PopArt", "+LN-c +FG-c", "+LN-c +PopArt +FG-c"]
    assert first_column(lines) == [*ladder, "TOPPO", "+PopArt", "+PopArt +FG-c"]
    assert not any("No row" in line for line in lines)


def test_rows_that_are_missing_are_said(runs, tmp_path):
    """Of the ladder; in Table D.1 of the cube, which has no TOPPO, and in D.2 of the combiners."""
    paths = [runs / "vanilla", runs / "toppo1", runs / "ln"]
    start = "No row, as no run was evaluated at this step: "
    rungs = "+LN-c +PopArt (`ablations/ln_popart.py`), +LN-c +FG-c (`ablations/ln_fairgrad.py`), "
    rungs += "+LN-c +PopArt +FG-c (`ablations/ln_popart_fairgrad.py`)"
    for name in ("table_2", "table_d5", "table_d10", "table_d11", "figure_1"):
        assert f"{start}{rungs}." in make(name, paths, tmp_path)
    (line,) = [line for line in make("table_d1", paths, tmp_path) if line.startswith(start)]
    assert "`ablations/popart_fairgrad.py`" in line and "toppo" not in line
    (line,) = [line for line in make("table_d2", paths, tmp_path) if line.startswith(start)]
    assert "`ablations/ln_popart_cagrad_cagrad.py`" in line and "vanilla" not in line


def test_one_seed_is_called_an_illustration(runs, tmp_path):
    lines = make("table_2", [runs / "vanilla", runs / "toppo1"], tmp_path)
    assert "One seed each: an illustration, no comparison." in lines
    assert cells(lines, "TOPPO")[:2] == ["1", "55.0"]


def test_fewer_goals_are_said(runs, tmp_path):
    """The end may be on all. What counts is what evals.csv says of each evaluation."""
    success = {0: 0, 400_000: 0.2, 800_000: 0.5}
    half = write_run(tmp_path / "half", "ln", 1, success, goals=dict.fromkeys(success, 25))
    said = "Evaluated on 25 of each task's 50 training goals"
    assert f"{said}." in make("table_2", [half], tmp_path)
    end = write_run(tmp_path / "end", "ln", 1, success, goals={0: 25, 400_000: 25})
    assert f"{said}, at the end on 50." in make("table_2", [end], tmp_path)
    assert not any("of each task's" in line for line in make("table_2", [runs / "ln"], tmp_path))
    goals = {0: 25, 2_000_000: 25}
    half = mt50_run(tmp_path / "mt50", "toppo_mt50", 1, {0: 0, 2: 0.5}, goals=goals)
    for name in ("table_figure_1", "table_steps_to_match"):
        assert make(name, [half], tmp_path).count(f"{said}.") == 1


def test_table_d4_is_of_v1(runs, tmp_path):
    v1 = write_run(tmp_path / "v1", "toppo_mt50", 1, {0: 0, 800_000: RAMP}, reward_version="v1")
    lines = make("table_d4", [runs, v1], tmp_path)
    titles = [line for line in lines if line.startswith("##")]
    assert titles == ["## MT10, V1, 0.8 M steps of the paper's 20 M"]
    assert row(lines, "TOPPO") == "1 | 55.0 | – | 10.0 | 20.0 | 30.0"


def trimmed_mean(values):
    """Of the sorted values without the lowest and the highest quarter, each rounded down."""
    cut = len(values) // 4
    return sum(sorted(values)[cut : len(values) - cut]) / (len(values) - 2 * cut)


def test_tables_3_and_d3(runs, tmp_path):
    """Of TOPPO's 20 rates on V2, 0.3 (x3), 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 (x2) are left, mean 0.57.

    The seeds' own IQM are 0.55 and 0.6. On V1 they are 0.6 and 0.62 everywhere, together 0.61. Two
    seeds have no interval. With a third, 0.7 everywhere, it is checked against a bootstrap written
    out here.
    """

    def write(name, script, seed, rates):
        success = {0: 0, 800_000: rates}
        return write_run(tmp_path / name, script, seed, success, reward_version="v1")

    v1 = [write("toppo1", "toppo_mt50", 1, 0.6), write("toppo2", "toppo_mt50", 2, 0.62)]
    v1.append(write("ln", "ln", 1, RAMP))
    lines = make("table_3", [runs, *v1], tmp_path)
    assert row(lines, "TOPPO") == "2 | 61.0 | – | –"  # the paper's is on MT50
    assert row(lines, "+LN-c") == "1 | 55.0 | – | –"  # (0.3 + ... + 0.8) / 6

    lines = make("table_d3", [runs, *v1], tmp_path)
    v1_cells = "2 | 61.0 | – | –"
    assert row(lines, "TOPPO") == f"{v1_cells} | 2 | 57.0 | – | -4.0"
    assert row(lines, "Vanilla MT-PPO") == "– | – | – | – | 1 | 0.0 | – | –"
    assert cells(lines, "+LN-c")[-4:] == ["1", "20.0", "–", "-35.0"]

    third = write_run(tmp_path / "third", "toppo_mt50", 3, {0: 0, 800_000: 0.7})
    lines = make("table_d3", [runs, *v1, third], tmp_path)
    n, value, interval, _ = cells(lines, "TOPPO")[4:]
    assert n == "3"
    scores = np.array([RAMP, HALVES, [0.7] * 10])
    assert value.startswith(f"{100 * trimmed_mean(scores.flatten()):.1f} ± ")
    rng = np.random.default_rng(1)
    draws = [
        trimmed_mean([scores[rng.integers(3), k] for _ in range(3) for k in range(10)])
        for _ in range(4000)
    ]
    found = [float(x) for x in interval.split(" to ")]
    np.testing.assert_allclose(found, 100 * np.quantile(draws, [0.025, 0.975]), atol=1.0)


def test_percent():
    assert r.percent(0.3) == "30.0"
    assert r.percent([0.4, 0.2]) == "30.0 (40.0, 20.0)"
    std = statistics.stdev([10, 20, 60])
    assert r.percent([0.1, 0.2, 0.6]) == f"30.0 ± {std:.1f}"


def test_the_bootstrap_is_seeded():
    success = np.random.default_rng(1).random((3, 1, 10))
    np.testing.assert_array_equal(r.iqm(success)[1], r.iqm(success)[1])


def test_table_d1(runs, tmp_path):
    lines = make("table_d1", [runs], tmp_path)
    assert row(lines, "`ablations/ln_popart_fairgrad.py`") == "✓ | ✓ | ✓ | ✓ | 1 | 45.0 | 45.0"
    assert row(lines, "`vanilla_mtppo.py`") == "– | – | – | ✓ | 1 | 10.0 | 0.0"
    assert not any("toppo" in line for line in lines)
    assert cells(lines, "with LN-c, no FG-c") == ["+10.0", "+10.0"]  # 20 to 30
    assert cells(lines, "with LN-c, with FG-c") == ["+5.0", "+5.0"]  # 40 to 45
    assert cells(lines, "no LN-c, no FG-c") == ["+5.0", "+15.0"]  # 10 to 15; worst 5: 0 to 15
    assert not rows(lines, "no LN-c, with FG-c")  # there is no run of fairgrad.py


def test_runs_without_the_value_clip_are_methods_of_their_own(runs, tmp_path):
    """A row in the tables, and a line in Figures 1 and D.6; the other figures leave them out."""
    end = {0: 0, 800_000: 0.7}
    control = write_run(tmp_path / "control", "ln", 1, end, clip_vloss=False)
    popart = write_run(tmp_path / "popart", "ln_popart", 1, {0: 0, 800_000: 0.9}, clip_vloss=False)
    given = [runs, control, popart]
    for name in ("table_2", "table_d10", "figure_1"):
        lines = make(name, given, tmp_path)
        assert cells(lines, "+LN-c, no value clip")[1] == "70.0", name
        assert cells(lines, "+LN-c")[1] == "20.0", name
    lines = make("table_d1", given, tmp_path)
    without = [x for x in rows(lines, "`ablations/ln.py`") if x[4:] == ["1", "70.0", "70.0"]]
    assert without == [["✓", "–", "–", "–", "1", "70.0", "70.0"]]
    assert cells(lines, "with LN-c, no FG-c") == ["+10.0", "+10.0"]
    assert cells(lines, "with LN-c, no FG-c, no value clip") == ["+20.0", "+20.0"]
    (curves, _) = drawn("figure_d6", given)["MT10, V2, 0.8 M steps, n = 1 to 2"]
    assert "+LN-c, no value clip (n = 1)" in curves
    (_, per_task) = drawn("figure_d8", given).popitem()
    assert not any("no value clip" in label for label in per_task[0])
    missing = refusal([control, write_run(tmp_path / "b", "ln", 1, end, clip_vloss=False)])
    assert missing.endswith("are both seed 1 of ablations/ln.py --no-clip-vloss: leave one out")


def test_table_d2(runs, tmp_path):
    lines = make("table_d2", [runs], tmp_path)
    default, fairgrad = rows(lines, "default")
    assert default == ["default", "1", "30.0", "30.0", "30.0", "–"]
    assert fairgrad == ["FG (α = 1)", "1", "45.0", "45.0", "45.0", "–"]
    *toppo, iqm, paper = cells(lines, "PCGrad")
    assert toppo == ["FG (α = 1)", "2", "62.5 (55.0, 70.0)", "57.5 (55.0, 60.0)"]  # best, final
    assert iqm == "57.0"  # two seeds have no interval
    assert paper == "97.2 at 20 M"


def test_table_d5_is_worst_first(runs, tmp_path):
    """By TOPPO's mean over seeds, from task0's (10 + 30) / 2 to task9's (100 + 90) / 2."""
    lines = make("table_d5", [runs], tmp_path)
    assert first_column(lines) == TEN
    toppo = cells(lines, "task").index("TOPPO, n = 2")
    assert cells(lines, "task0-v3")[toppo] == "20.0 (10.0, 30.0)"
    assert cells(lines, "task9-v3")[toppo] == "95.0 (100.0, 90.0)"
    vanilla = cells(lines, "task").index("Vanilla MT-PPO, n = 1")
    assert cells(lines, "task8-v3")[vanilla] == "0.0"
    assert cells(lines, "task9-v3")[vanilla] == "100.0"


def test_tables_of_other_sets(tmp_path):
    """Named tasks are in no table or figure of the paper's; of the same mean, by name."""
    path = write_three_tasks(tmp_path / "a", tasks=THREE, reward_version="v1")
    lines = make("table_d5_other_sets", [path], tmp_path)
    assert "## a, b, c, V1, 0.003 M steps" in lines
    assert [line for line in lines if "-v3" in line] == [
        "| a-v3 | 50.0 |",
        "| b-v3 | 50.0 |",
        "| c-v3 | 100.0 |",
    ]
    assert "## a, b, c, V1, 0.003 M steps" in make("figure_d8_other_sets", [path], tmp_path)


def write_three_tasks(path, tasks, **args):
    path = write_run(path, "ln", 1, {0: 0, 3000: [1, 0.5, 0.5]}, tasks=tasks, benchmark="MT50")
    given = json.loads((path / "args.json").read_text())
    (path / "args.json").write_text(json.dumps(given | {"tasks": tasks} | args))
    return path


@pytest.mark.parametrize("benchmark", ["MT10", "MT25", "MT50"])
def test_a_benchmark_is_known_by_its_tasks(benchmark, tmp_path):
    """args.json has the tasks by name, whether they were given so or by their benchmark."""
    names = list(import_module("toppo_mt50").BENCHMARKS[benchmark])
    for given in (names, names[::-1]):
        path = write_run(tmp_path / given[0], "ln", 1, {0: 0}, tasks=names, benchmark=benchmark)
        args = json.loads((path / "args.json").read_text())
        (path / "args.json").write_text(json.dumps(args | {"tasks": given}))
        assert r.read_run(path).task_set == benchmark
    other = write_three_tasks(tmp_path / "other", tasks=names[:3])
    assert r.read_run(other).task_set == ", ".join(sorted(n.removesuffix("-v3") for n in names[:3]))


def test_table_d10(runs, tmp_path):
    """At 400,000 steps the seeds' means are 50 and 70, the peak 60. Late: the last of three."""
    lines = make("table_d10", [runs], tmp_path)
    toppo = "2 | 62.5 (55.0, 70.0) | 60.0 | 57.5 (55.0, 60.0) | 57.5 (55.0, 60.0) | 97.2 at 20 M"
    assert row(lines, "TOPPO") == toppo
    assert row(lines, "Vanilla MT-PPO") == "1 | 20.0 | 20.0 | 10.0 | 10.0 | –"


def test_late_is_the_last_tenth(tmp_path):
    """30 checkpoints of 0, but for 0.5, 0.7, 0.9 and 0.6 at the end: the last three."""
    success = {400_000 * i: {26: 0.5, 27: 0.7, 28: 0.9, 29: 0.6}.get(i, 0) for i in range(30)}
    lines = make("table_d10", [write_run(tmp_path / "run", "ln", 1, success)], tmp_path)
    assert row(lines, "+LN-c") == "1 | 90.0 | 90.0 | 60.0 | 73.3 | –"


def test_table_d11(runs, tmp_path):
    """TOPPO's seeds are best at 0.8 and 0.4 M."""
    lines = make("table_d11", [runs], tmp_path)
    toppo = "2 | 0.6 | [0.5, 0.7] | 0.4–0.8 | 12.6 | [9.4, 17.2] | 7.2–19.6"
    assert row(lines, "TOPPO") == toppo
    assert cells(lines, "Vanilla MT-PPO")[:4] == ["1", "0.4", "–", "–"]


def test_table_b2(tmp_path):
    lines = make("table_b2", [], tmp_path)
    vanilla = "`vanilla_mtppo.py` | 683,645 | 715,805 | 684K | 716K"
    assert row(lines, "Vanilla MT-PPO") == vanilla
    assert row(lines, "+LN-c") == "`ablations/ln.py` | 684,845 | 717,005 | 685K | 717K"
    assert row(lines, "TOPPO") == "`toppo_mt50.py` | 684,865 | 717,105 | 685K | 717K"
    assert row(lines, "Meta-World+: MOORE") == "6810K | 10385K"


def test_runs_of_different_lengths_are_compared_at_equal_steps(tmp_path):
    """One that ends at 1 M was evaluated there, those that go on were not: all were at 0.8 M."""
    write_run(tmp_path / "r/ln", "ln", 1, {0: 0, 400_000: 0.1, 800_000: 0.2, 1_000_000: 0.9})
    write_run(tmp_path / "r/toppo1", "toppo_mt50", 1, {400_000 * i: i / 10 for i in range(6)})
    write_run(tmp_path / "r/toppo2", "toppo_mt50", 2, {400_000 * i: i / 5 for i in range(4)})
    write_run(tmp_path / "r/started", "vanilla_mtppo", 1, {0: 0})
    lines = make("table_2", [tmp_path / "r"], tmp_path)
    titles = [f"## MT10, V2, {step} M steps of the paper's 20 M" for step in (0.8, 1.2, 2)]
    assert [line for line in lines if line.startswith("##")] == titles
    starts = [lines.index(title) for title in titles]
    sections = [lines[a:b] for a, b in zip(starts, [*starts[1:], None])]
    assert cells(sections[0], "+LN-c")[:2] == ["1", "20.0"]
    assert cells(sections[0], "TOPPO")[:2] == ["2", "30.0 (20.0, 40.0)"]
    assert not rows(sections[1], "+LN-c")
    assert cells(sections[1], "TOPPO")[:2] == ["2", "45.0 (30.0, 60.0)"]
    assert cells(sections[2], "TOPPO")[:2] == ["1", "50.0"]
    assert not rows(lines, "Vanilla MT-PPO")

    # TOPPO alone is no comparison, but all there is
    assert len(rows(make("table_d2", [tmp_path / "r"], tmp_path), "PCGrad")) == 2
    write_run(tmp_path / "r/default", "ln_popart", 1, {0: 0, 400_000: 0.1, 800_000: 0.2})
    assert len(rows(make("table_d2", [tmp_path / "r"], tmp_path), "PCGrad")) == 1


def item(name, paths):
    """Title, lines and figure of table or figure NAME, not written."""
    made = ITEMS[name](r.load_runs(paths))
    r.plt.close("all")
    return made


def drawn(name, paths):
    """A figure's visible axes: {title: ({label: (x, y)} of its lines, number of bands)}."""
    figure = item(name, paths)[2]
    return {
        axis.get_title(): (
            {line.get_label(): line.get_data() for line in axis.lines},
            len(axis.collections),
        )
        for axis in figure.axes
        if axis.get_visible()
    }


def test_figure_1(runs, tmp_path):
    """Curves of TOPPO's seeds' mean."""
    paths = [runs / "vanilla", runs / "toppo1", runs / "toppo2"]
    lines = make("figure_1", paths, tmp_path)
    tails = "30.0 (30.0, 30.0) | 25.0 (20.0, 30.0) | 20.0 (10.0, 30.0)"
    assert row(lines, "TOPPO") == f"2 | 57.5 (55.0, 60.0) | {tails}"
    panels = drawn("figure_1", paths)
    kinds = ["mean of 10 tasks", "worst 5", "worst 3", "worst 1"]
    assert [*panels] == [f"MT10, {kind}, n = 1 to 2" for kind in kinds]
    for kind, vanilla, toppo in (
        ("mean of 10 tasks", [0, 20, 10], [0, 60, 57.5]),
        ("worst 3", [0, 20, 0], [0, 60, 25]),
    ):
        curves, _ = panels[f"MT10, {kind}, n = 1 to 2"]
        np.testing.assert_allclose(curves["Vanilla MT-PPO"], [[0, 0.4, 0.8], vanilla])
        np.testing.assert_allclose(curves["TOPPO"], [[0, 0.4, 0.8], toppo])
        assert not any("paper" in label for label in curves)


def test_figure_1_leaves_out_what_is_flat_at_zero(tmp_path):
    """Of nine tasks at 0 only the worst 5, 3 and 1 are 0 throughout."""
    run = write_run(tmp_path / "run", "ln", 1, {0: 0, 400_000: [0] * 5 + [0.5] * 5})
    left_out = "MT10, V2, 0.4 M steps: not drawn, as at 0 throughout: worst 5, 3, 1."
    assert left_out in make("figure_1", [run], tmp_path)
    assert [*drawn("figure_1", [run])] == ["MT10, mean of 10 tasks, n = 1"]
    figure = item("figure_1", [run])[2]
    assert figure.axes[0].get_xlabel().endswith("(worst 5, 3, 1: 0 throughout)")
    # The mean is drawn even so
    nothing = write_run(tmp_path / "nothing", "ln", 2, {0: 0, 400_000: 0})
    assert [*drawn("figure_1", [nothing])] == ["MT10, mean of 10 tasks, n = 1"]


def test_bands_are_of_three_seeds_and_stay_within_limits():
    """Seeds at 0, 0 and 90: mean 30, std 52."""
    steps = np.array([0, 1_000_000])
    for values, num_lines in (
        ([[0, 0]], 1),
        ([[0, 0], [0, 90]], 3),
        ([[0, 0], [0, 0], [0, 90]], 1),
    ):
        axis = r.plt.figure().add_subplot()
        r.plot_band(axis, steps, np.array(values, float), "ln", "name", limits=r.PERCENT)
        assert len(axis.lines) == num_lines
        np.testing.assert_allclose(axis.lines[0].get_ydata(), np.mean(values, 0))
        assert len(axis.collections) == (len(values) == 3)
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose((band.min(), band.max()), (0, 30 + 90 / 3**0.5))
    thin = [line.get_linewidth() for line in r.plt.figure(r.plt.get_fignums()[-2]).axes[0].lines]
    assert thin[1] == thin[2] < thin[0]
    r.plt.close("all")


@pytest.mark.parametrize("num_tasks, k", [(50, 10), (25, 10), (10, 5), (4, 3), (3, 1), (1, 1)])
def test_tail_size(num_tasks, k):
    assert r.tail_size(num_tasks) == k


def test_figure_4(runs, tmp_path):
    """The worst 5 of RAMP and HALVES are 30. Of two seeds the std is no bar."""
    lines = make("figure_4", [runs], tmp_path)
    assert row(lines, "TOPPO") == "2 | 57.5 (55.0, 60.0) | 30.0 (30.0, 30.0)"
    assert not rows(lines, "+PopArt")
    curves, bars = drawn("figure_4", [runs])["MT10, V2, 0.8 M steps, n = 1 to 2"]
    assert bars == 0
    np.testing.assert_allclose(curves["mean of 10 tasks"][1], [10, 20, 30, 40, 45, 57.5])
    np.testing.assert_allclose(curves["worst 5"][1], [0, 20, 30, 40, 45, 30])
    places = [0, 1, 1.7, 2.3, 3, 4]
    np.testing.assert_allclose(curves["worst 5"][0], places)
    third = write_run(tmp_path / "third", "toppo_mt50", 3, {0: 0, 800_000: 0.5})
    assert drawn("figure_4", [runs, third])["MT10, V2, 0.8 M steps, n = 1 to 3"][1] == 2


def test_figure_4_connects_rungs_that_contain_each_other(runs):
    """PopArt's and FairGrad's rungs are side by side; without a rung its neighbours meet."""
    figure = item("figure_4", [runs])[2]
    segments = {
        tuple(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 2
    }
    up = [(0, 1), (1, 1.7), (1, 2.3), (1.7, 3), (2.3, 3), (3, 4)]
    assert {(round(a, 3), round(b, 3)) for a, b in segments if a != b} == set(up)
    figures = import_module("figure_1_4_d6_d7_learning_curves")
    assert figures.steps_up(["vanilla_mtppo", "toppo_mt50"]) == [("vanilla_mtppo", "toppo_mt50")]
    assert figures.places(["vanilla_mtppo", "toppo_mt50"]) == {"vanilla_mtppo": 0, "toppo_mt50": 1}
    assert figures.steps_up(["ln_popart", "ln_fairgrad"]) == []


@pytest.mark.parametrize("name, reward", [("figure_d6", "v2"), ("figure_d7", "v1")])
def test_figures_d6_and_d7(name, reward, tmp_path):
    paths = []
    for version in ("v1", "v2"):
        for seed, rate in ((1, 0.25), (2, 0.75)):
            path = tmp_path / f"{version}{seed}"
            success = {0: 0, 400_000: rate}
            paths.append(write_run(path, "toppo_mt50", seed, success, reward_version=version))
    assert row(make(name, paths, tmp_path), "TOPPO") == "2 | 50.0 (25.0, 75.0)"
    ((title, (curves, bands)),) = drawn(name, paths).items()
    assert (title, bands) == (f"MT10, {reward.upper()}, 0.4 M steps, n = 2", 0)
    np.testing.assert_allclose(curves["TOPPO (n = 2)"], [[0, 0.4], [0, 50]])
    assert ("paper's TOPPO at 20 M: 97.2" in curves) == (reward == "v2")


def test_figure_d8(runs, tmp_path):
    paths = [runs / "vanilla", runs / "toppo1", runs / "toppo2"]
    assert cells(make("figure_d8", paths, tmp_path), "TOPPO") == ["2"]
    panels = drawn("figure_d8", paths)
    assert [*panels] == TEN
    np.testing.assert_allclose(panels["task9-v3"][0]["TOPPO"], [[0, 0.4, 0.8], [0, 60, 95]])
    np.testing.assert_allclose(panels["task9-v3"][0]["Vanilla MT-PPO"][1], [0, 20, 100])


@pytest.mark.parametrize(
    "reward, names", [("v2", ("table_d6", "figure_d9")), ("v1", ("table_d7", "figure_d10"))]
)
def test_mt50(reward, names, tmp_path):
    """Task k ends at k / 100."""
    tasks = [f"task{k:02}-v3" for k in range(50)]
    success = {0: 0, 1_000_000: np.arange(50) / 100}
    args = {"tasks": tasks, "benchmark": "MT50", "reward_version": reward}
    run = write_run(tmp_path / "run", "toppo_mt50", 1, success, **args)
    lines = make(names[0], [run], tmp_path)
    expected = [f"| task{k:02}-v3 | {k}.0 |" for k in range(50)]
    assert [line for line in lines if "-v3" in line] == expected
    lines = make(names[1], [run], tmp_path)
    assert "At 0 throughout and not drawn: task00-v3." in lines
    panels = drawn(names[1], [run])
    assert [*panels] == tasks[1:]
    above = f"MT50, {reward.upper()}, 1 M steps, n = 1; 1 of 50 tasks at 0 throughout and not drawn"
    assert item(names[1], [run])[2].get_suptitle() == above
    np.testing.assert_allclose(panels["task42-v3"][0]["TOPPO"], [[0, 1], [0, 42]])


def commands(message):
    """The commands in what a Missing says, each the words after python."""
    found = []
    for text in message.split("python ")[1:]:
        words = text.split(", ")[0].split("; ")[0].split()
        found.append(words)
    return found


def test_what_is_missing_is_said_with_the_command_that_makes_it(runs, tmp_path):
    """On one line each, and the command names a script of the repository and a flag of it."""
    flags = set(vars(import_module("vanilla_mtppo").Args()))
    for name, result in r.produce(ITEMS, [], tmp_path).items():
        if name == "table_b2":
            continue  # needs no runs
        assert isinstance(result, r.Missing), name
        assert "\n" not in str(result)
        assert commands(str(result))
        for path, *words in commands(str(result)):
            assert (ROOT / path).is_file(), result
            given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
            assert given <= flags, result
    command = "toppo_mt50.py --benchmark MT50 --reward-version v1$"
    with pytest.raises(r.Missing, match=f"on MT50 with V1 rewards .* {command}"):
        make("table_d7", [runs], tmp_path)
    command = "python ablations/ln_popart.py$"
    with pytest.raises(r.Missing, match=f"no run of ln_popart.py, .*; make one: {command}"):
        make("table_d2", [runs / "vanilla"], tmp_path)
    with pytest.raises(r.Missing, match="no run of ln.py, .*, ln.py --no-clip-vloss, "):
        make("table_d1", [runs / "toppo1"], tmp_path)


def refusal(paths):
    with pytest.raises(r.Missing) as reason:
        r.load_runs(paths)
    assert "\n" not in str(reason.value)
    return str(reason.value)


def test_unusable_runs_are_refused(runs, tmp_path):
    none = tmp_path / "none"
    assert refusal([none]).endswith(f"make one: python toppo_mt50.py --run-dir {none}")
    twin = write_run(tmp_path / "twin", "toppo_mt50", 2, {0: 0, 400_000: 0.5})
    both = f"{runs / 'toppo2'} and {twin} are both seed 2 of toppo_mt50.py"
    assert refusal([runs, twin]) == f"{both}: leave one out"
    later = write_run(tmp_path / "later", "toppo_mt50", 2, {0: 0, 400_000: 0.5}, commit="8c12525a")
    assert [r.commit(run) for run in r.load_runs([twin, later])] == ["8c12525", "24b7fef"]
    again = write_run(tmp_path / "again", "toppo_mt50", 2, {0: 0, 400_000: 0.5}, commit="77777777")
    assert refusal([again, later]).endswith("are both seed 2 of toppo_mt50.py: leave one out")
    no_clone = write_run(
        tmp_path / "no_clone", "ln", 3, {0: 0}, commit="fatal: not a git repository"
    )
    assert r.commit(r.read_run(no_clone)) == "–"
    unknown = write_run(tmp_path / "unknown", "mine", 3, {0: 0})
    what = "a run of mine.py, which is none of the repository's scripts"
    assert refusal([unknown]) == f"{unknown}: {what}"
    new = write_run(tmp_path / "new", "ln", 3, {})
    command = f"python ablations/ln.py --run-dir {new}"
    assert refusal([new]) == f"{new}: no evaluation in evals.csv; go on with: {command}"


def test_runs_with_other_flags_are_refused(runs, tmp_path):
    """A run of the first version had Adam's eps at 1e-5, where no flag said so."""
    first = write_run(tmp_path / "first", "toppo_mt50", 1, {0: 0, 400_000: 0.5})
    differing = [("--num-steps", {"num_steps": 1000}), ("--adam-eps", {"adam_eps": 1e-8})]
    for seed, (flag, args) in enumerate(differing, start=2):
        path = tmp_path / f"other{seed}"
        other = write_run(path, "toppo_mt50", seed, {0: 0, 400_000: 0.5}, **args)
        both = f"{first} and {other} differ in {flag}"
        assert refusal([first, other]) == f"{both}: show them in separate calls"


def test_runs_may_differ_in_what_does_not_change_what_is_learned(tmp_path):
    """Of the scripts' flags, those that a run may be continued with; and what surrounds them."""
    script = import_module("toppo_mt50")
    names = [field.name for field in fields(script.Args)]
    free = {*names[names.index("total_timesteps") :], "commit", "edits", "packages", "seed"}
    free -= {"eval_episodes"}  # another number of goals is another measure
    given = {name: 1 for name in [*names, *free] if name not in ("benchmark", "tasks")}
    for seed, value in ((1, "a"), (2, "b")):
        args = given | dict.fromkeys(free, value) | {"seed": seed, "reward_version": "v2"}
        path = write_run(tmp_path / value, "ln", seed, {0: 0})
        old = json.loads((path / "args.json").read_text())
        (path / "args.json").write_text(json.dumps(old | args))
    assert len(r.load_runs([tmp_path])) == 2


def run(script, *arguments):
    command = [sys.executable, ROOT / "paper" / script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_script_alone(runs, tmp_path):
    process = run("table_2_d4_worst_k.py", runs, "--out", tmp_path)
    assert process.returncode == 0
    assert process.stdout == f"wrote {tmp_path}/table_2.md\n"
    missing = "no run of any script with V1 rewards that was evaluated after step 0"
    command = "python toppo_mt50.py --reward-version v1"
    assert process.stderr == f"table_d4: {missing}; make one: {command}\n"
    lines = (tmp_path / "table_2.md").read_text().splitlines()
    assert cells(lines, "TOPPO")[1] == "57.5 (55.0, 60.0)"
    process = run("table_2_d4_worst_k.py", tmp_path / "none")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "--run-dir" in process.stderr


def test_all(runs, tmp_path):
    """What needs scalars, dumps, V1 or MT50 is listed as not made; the rest is on the page."""
    out = tmp_path / "results/paper"
    page = tmp_path / "docs/results.md"
    out.mkdir(parents=True)
    process = run("all.py", runs, "--show-hashes")
    name, value = process.stdout.strip().split(": ")
    assert name == "MT10, V2"
    (out / "table_2_note.md").write_text(f"<!-- runs: {value} -->\nWhat we make of it.\n")
    process = run("all.py", runs, "--out", out, "--page", page)
    assert (process.returncode, process.stderr) == (0, "")
    lines = page.read_text().splitlines()

    made = {file.stem for file in out.glob("*.md")} - {"table_2_note"}
    tables = {"table_2", "table_d1", "table_d2", "table_d5", "table_d10", "table_d11", "table_b2"}
    assert made == tables | {"figure_1", "figure_4", "figure_d6", "figure_d8"}
    for name in made:
        contents = "its numbers" if name.startswith("figure") else f"{name}.md"
        assert f"[{contents}](../results/paper/{name}.md)" in lines
        shown = [line for line in lines if line.endswith(f"(../results/paper/{name}.png)")]
        assert len(shown) == name.startswith("figure")
    skipped = lines[lines.index("## Not made") + 2 :]
    names = {line.split(":")[0][2:] for line in skipped}
    assert "figure 3" in names
    assert len(made) + len(names) == len(ITEMS)
    assert all("python " in line for line in skipped)

    assert lines.count("What we make of it.") == 1
    assert f"Made by `python paper/all.py {runs} --out {out} --page {page}`." in lines
    assert row(lines, "toppo2") == "MT10 | V2 | TOPPO | `toppo_mt50.py` | 2 | 24b7fef | 0.8 M | 0"
    toppo = "2 | 57.5 (55.0, 60.0) | 97.2 at 20 M"
    toppo += " | 20.0 (10.0, 30.0) | 25.0 (20.0, 30.0) | 30.0 (30.0, 30.0)"
    assert toppo.split(" | ") in rows(lines, "TOPPO")
    (theorem,) = [line.split("(")[1][:-1] for line in lines if "figure_d5_theorem1.png" in line]
    assert (page.parent / theorem).resolve() == ROOT / "results/figure_d5_theorem1.png"


def test_all_without_runs_writes_nothing(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("What was there.\n")
    process = run("all.py", "--out", tmp_path / "out", "--page", page)
    assert process.returncode == 2
    assert process.stderr.startswith("all.py: error: no runs given")
    assert process.stderr.count("\n") == 1
    assert page.read_text() == "What was there.\n"
    assert not (tmp_path / "out").exists()


def test_tables_go_beside_the_runs(tmp_path):
    """A reader's own are not written over those of results/, nor taken for a run."""
    path = write_run(tmp_path / "runs/mine", "ln", 1, {0: 0, 400_000: 0.5})
    committed = (ROOT / "docs/results.md").read_text()
    for given in (tmp_path / "runs", path, tmp_path / "runs"):
        process = run("all.py", given)
        assert process.returncode == 0, process.stderr
        index = (tmp_path / "runs/paper/index.md").read_text()
        assert "[table_2.md](./table_2.md)" in index
        assert (tmp_path / "runs/paper/figure_1.png").exists()
        shutil.rmtree(tmp_path / "runs/paper")
    process = run("table_2_d4_worst_k.py", path)
    assert process.stdout == f"wrote {tmp_path}/runs/paper/table_2.md\n"
    assert (ROOT / "docs/results.md").read_text() == committed


def test_a_note_is_shown_with_its_own_runs_only(runs, tmp_path, capsys):
    """With those of each task set and reward that it names; folders' names do not matter."""

    def hashes(*paths):
        return ALL.hashes_of(r.load_runs(paths))

    v1 = write_run(tmp_path / "v1", "ln", 1, {0: 0, 800_000: 0.5}, reward_version="v1")
    both = hashes(runs, v1)
    assert [*both] == ["MT10, V1", "MT10, V2"]
    assert both["MT10, V2"] == hashes(runs)["MT10, V2"] == r.hash_of(r.load_runs([runs])[::-1])
    assert both["MT10, V2"] != hashes(runs / "ln", runs / "toppo1")["MT10, V2"]
    shutil.copytree(runs, tmp_path / "renamed/a")
    (tmp_path / "renamed/a/ln").rename(tmp_path / "renamed/a/zz")
    assert hashes(tmp_path / "renamed/a") == hashes(runs)
    (tmp_path / "renamed/a/zz/scalars.csv").write_text("step,tag,value\n")
    assert hashes(tmp_path / "renamed/a") != hashes(runs)

    note = tmp_path / "note.md"
    assert r.read_note(note, both.values(), "python X") == []
    for named in (both["MT10, V1"], " ".join(both.values())):
        note.write_text(f"<!-- runs: {named} -->\nA text.\n")
        assert r.read_note(note, both.values(), "python X") == ["A text."]
    assert capsys.readouterr().err == ""
    for first, lack in (
        (f"<!-- runs: {both['MT10, V1']} abc -->", f"it is of the runs {both['MT10, V1']} abc"),
        ("A heading", "its first line names no runs"),
    ):
        note.write_text(f"{first}\nA text.\n")
        said = f"note.md is left out: {lack}; the hashes of these runs: python X"
        assert r.read_note(note, both.values(), "python X") == [f"*{said}*"]
        assert capsys.readouterr().err == f"{said}\n"
    note.write_text("")
    assert len(r.read_note(note, both.values(), "python X")) == 1


@pytest.mark.parametrize("name, count", [("mt10", 20), ("mt50", 5), ("choices", 12)])
def test_committed_runs_are_read(name, count):
    """Some on MT10 are of the scripts' first version."""
    paths = r.run_directories([ROOT / "results" / name])
    found = [r.read_run(path) for path in paths]
    assert len(found) == count
    for run in found:
        assert run.task_set in ("MT10", "MT50") and run.reward == "v2"
        seeds = r.up_to(int(run.steps[-1]), [run])
        steps, ratio = import_module("figure_2_d2_norm_spread").norm_ratio(seeds)
        collect = 10_000 * len(run.tasks)
        assert len(steps) == run.steps[-1] / collect and np.isfinite(ratio).all()


def test_published_best_steps_are_in_the_papers_order():
    """Median within quartiles within range within budget: guards against a slip in copying."""
    published = import_module("published")
    for (_, task_set), (median, low, high, least, most) in published.BEST_STEP.items():
        assert least <= low <= median <= high <= most <= published.BUDGET[task_set]


PUBLISHED = import_module("published")
FIFTY = [f"task{k:02}-v3" for k in range(50)]


def mt50_run(path, script, seed, success, **args):
    success = {int(step * 1_000_000): rate for step, rate in success.items()}
    return write_run(path, script, seed, success, tasks=FIFTY, benchmark="MT50", **args)


def test_published_figure_1():
    toppo = {point.step: point for point in PUBLISHED.CURVES["toppo_mt50"]}
    assert (toppo[1].success, toppo[1].exact) == (15.1, False)
    assert (toppo[100].success, toppo[100].exact) == (90.9, True)
    assert PUBLISHED.FINAL["toppo_mt50", "MT50", "v2"] == toppo[100].success
    for points in PUBLISHED.CURVES.values():
        steps = [point.step for point in points]
        assert steps == sorted(set(steps))
        assert all(0 <= point.success <= 100 for point in points)
    assert PUBLISHED.BASELINES[0] == ("SAC-MT", 47.6, 2.0, False, None)
    assert PUBLISHED.BASELINES[-1] == ("ARS-LN-1024", 88.9, 2.6, True, 39.7)
    finals = [baseline.final for baseline in PUBLISHED.BASELINES]
    assert len(finals) == 8 and finals == sorted(finals)


def test_the_papers_curve_is_interpolated_between_its_points_only():
    """TOPPO has 24.9 at 2 M and 39.9 at 4 M."""
    assert PUBLISHED.papers_success("toppo_mt50", 1) == 15.1
    assert PUBLISHED.papers_success("toppo_mt50", 3) == pytest.approx(32.4)
    assert PUBLISHED.papers_success("toppo_mt50", 0.9) is None
    assert PUBLISHED.papers_success("toppo_mt50", 101) is None


def test_first_crossing():
    steps, success = [0, 2, 4, 6], [0, 10, 5, 30]
    assert PUBLISHED.first_crossing(steps, success, 10) == (1, 2)
    assert PUBLISHED.first_crossing(steps, success, 15) == (3, pytest.approx(4.8))
    assert PUBLISHED.first_crossing(steps, success, 0) == (0, 0)
    assert PUBLISHED.first_crossing(steps, success, 31) is None


def test_table_figure_1(runs, tmp_path):
    """The paper's TOPPO: 15.1, 24.9, 32.4 by interpolation; our seeds: 15 and 25, 10, 30."""
    mt50_run(tmp_path / "r/a", "toppo_mt50", 1, {0: 0, 0.5: 0.1, 1: 0.15, 2: 0.1, 3: 0.3})
    mt50_run(tmp_path / "r/b", "toppo_mt50", 2, {0: 0, 1: 0.25})
    mt50_run(tmp_path / "r/c", "vanilla_mtppo", 1, {0: 0, 12: 0.5})
    mt50_run(tmp_path / "r/d", "vanilla_mtppo", 2, {0: 0, 12: 0.9}, reward_version="v1")
    mt50_run(tmp_path / "r/e", "vanilla_mtppo", 1, {0: 0, 4: 0.2}, clip_vloss=False)
    lines = make("table_figure_1", [runs, tmp_path / "r"], tmp_path)
    (axis,) = item("table_figure_1", [runs, tmp_path / "r"])[2].axes
    curves = {line.get_label(): line.get_xydata().round(6).tolist() for line in axis.lines}
    assert curves["TOPPO, ours"] == [[0, 0], [0.5, 10], [1, 20], [2, 10], [3, 30]]
    assert curves["TOPPO, the paper's ±5"][:2] == [[1, 15.1], [2, 24.9]]
    assert row(lines, "1 M") == "2 | 20.0 | 15.1 | read off | +4.9"
    assert row(lines, "2 M") == "1 | 10.0 | 24.9 | read off | -14.9"
    assert row(lines, "3 M") == "1 | 30.0 | 32.4 | interpolated | -2.4"
    assert row(lines, "12 M") == "1 | 50.0 | 40.3 | interpolated | +9.7"  # 37.8 at 10, 44.1 at 15
    assert row(lines, "4 M") == "1 | 20.0 | 19.3 | read off | +0.7"  # vanilla's, without the clip
    assert curves["Vanilla MT-PPO, no value clip, ours"] == [[0, 0], [4, 20]]
    assert not rows(lines, "0.5 M") and not rows(lines, "0 M")
    verdict = (
        "TOPPO: the largest difference is -14.9 points, at 2 M steps, the last -2.4, at 3 M. "
        "Before 10 M, where the band of the paper's seeds is about ±5 points, "
        "2 of 3 differences are within it."
    )
    assert verdict in lines
    verdict = "Vanilla MT-PPO: the largest difference is +9.7 points, at 12 M steps, "
    assert f"{verdict}the last +9.7, at 12 M." in lines
    command = "with 1 M steps; make one: python toppo_mt50.py --benchmark MT50$"
    with pytest.raises(r.Missing, match=command):
        make("table_figure_1", [runs], tmp_path)


def test_the_papers_curves_are_drawn_behind_ours(runs, tmp_path):
    """As far as ours go, and where they are of the same tasks and rewards."""
    mt50_run(tmp_path / "r/a", "toppo_mt50", 1, {0: 0, 1: 0.25, 4: 0.5})
    mt50_run(tmp_path / "r/b", "toppo_mt50", 1, {0: 0, 1: 0.25, 4: 0.5}, reward_version="v1")
    panels = drawn("figure_1", [runs, tmp_path / "r"])
    (title,) = [title for title in panels if title.startswith("MT50, mean of 50")]
    curves, _ = panels[title]
    steps, success = curves["the paper's TOPPO, 10 seeds"]
    assert (list(steps[:3]), list(success[:3])) == ([1, 2, 4], [15.1, 24.9, 39.9])
    assert "the paper's Vanilla MT-PPO, 10 seeds" not in curves
    labels = [label for title in panels for label in panels[title][0] if "paper" in label]
    assert len(labels) == 1
    figure = item("figure_1", [tmp_path / "r"])[2]
    low, high = figure.axes[0].get_xlim()
    assert -0.5 < low <= 0 and 4 <= high < 4.5
    paper, own = figure.axes[0].lines[::-1]
    assert paper.get_zorder() < own.get_zorder() and paper.get_linewidth() < own.get_linewidth()
    (curves, _) = drawn("figure_d6", [tmp_path / "r"])["MT50, V2, 4 M steps, n = 1"]
    assert "the paper's TOPPO, 10 seeds" in curves
    assert not any("10 seeds" in x for x in drawn("figure_d7", [tmp_path / "r"]).popitem()[1][0])


def test_table_steps_to_match(runs, tmp_path):
    """40 at 4 M and 50 at 6 M: 47.6 is reached at 5.52. The paper's TOPPO: 39.9 + 11.6 / 2 x in
    4 to 6 M, 5.33; 57.7 at 8 M and 62.2 at 10 M, then 73.8 at 15: 64.2 at 10.9."""
    mt50_run(tmp_path / "r/a", "toppo_mt50", 1, {0: 0, 4: 0.4, 6: 0.45, 8: 0.44})
    mt50_run(tmp_path / "r/b", "toppo_mt50", 2, {0: 0, 4: 0.4, 6: 0.55})
    lines = make("table_steps_to_match", [runs, tmp_path / "r"], tmp_path)
    expected = "≈ 47.6 ± 2.0 | ≈ 5.33 | 6 M: 50.0, n = 2 | 5.52 M"
    assert row(lines, "SAC-MT") == expected
    far = "not by 8 M: 50.0 at 6 M, n = 2 | –"
    assert row(lines, "MOORE") == f"≈ 64.2 ± 3.1 | ≈ 10.9 | {far}"
    assert row(lines, "ARS-LN-1024") == f"88.9 ± 2.6 | 39.7 | {far}"
    absent = [line for line in lines if line.startswith("Not shown: ")]
    assert "no run of vanilla_mtppo.py on MT50 with V2 rewards" in absent[0]
    assert absent[1].endswith("python toppo_mt50.py --benchmark MT50 --reward-version v1.")
    assert len(absent) == 2

    # Vanilla's paper curve never has 83.2; V1 is by IQM, of these 50 tasks the middle ones
    mt50_run(tmp_path / "r/c", "vanilla_mtppo", 1, {0: 0, 4: 0.4})
    rates = [0] * 12 + [0.62] * 26 + [1] * 12
    success = {0: 0, 1: 0.1, 2: 0.2, 3: rates}
    mt50_run(tmp_path / "r/d", "toppo_mt50", 1, success, reward_version="v1")
    lines = make("table_steps_to_match", [tmp_path / "r"], tmp_path)
    assert rows(lines, "ARS-LoRA")[1][1:] == ["never", "not by 4 M: 40.0 at 4 M, n = 1", "–"]
    assert row(lines, "PaCo") == "18.6 | 2 | 2 M: 20.0, n = 1 | 1.86 M"
    assert rows(lines, "MOORE")[2] == ["61.2", "13", "3 M: 62.0, n = 1", "2.98 M"]
    assert row(lines, "MT-MH-SAC") == "not known here | 3 | – | –"
    assert not any("Not shown" in line for line in lines)


def test_evals_csv_is_what_the_scripts_write(tmp_path):
    """The header of write_run, which stands for a run here, is the training scripts' own."""
    path = write_run(tmp_path / "run", "ln", 1, {0: 0})
    header = next(csv.reader(open(path / "evals.csv")))
    assert repr(tuple(header))[1:-1].replace("'", '"') in (ROOT / "toppo_mt50.py").read_text()


def choice_run(path, script, seed, success, train, variance, **args):
    scalars = {
        "train_success/mean": {100_000: 0.0, **train},
        "explained_variance/mean": dict.fromkeys(train, variance),
    }
    version = {} if seed == 2 else {"commit": "8c12525"}  # the first version names none
    return write_run(path, script, seed, {0: 0, **success}, scalars, **version, **args)


def test_choices(tmp_path):
    """Compared at 500,000 steps, the last that all of a choice's runs have.

    The worst five of RAMP and of HALVES are 30.
    """
    base = tmp_path / "base"
    choices = tmp_path / "choices"
    page = tmp_path / "docs/choices.md"
    page.parent.mkdir()
    later = {500_000: 0.25, 900_000: 1}
    for seed, rates in ((1, RAMP), (2, HALVES)):
        success = {500_000: rates, 1_000_000: 1}
        choice_run(base / f"toppo{seed}", "toppo_mt50", seed, success, later, 0.5)
    choice_run(base / "vanilla", "vanilla_mtppo", 1, {500_000: 0.1}, {500_000: 0.2}, 0.125)
    path = choices / "log_std_-1.0__toppo_mt50__1"
    choice_run(path, "toppo_mt50", 1, {500_000: 0.4}, {500_000: 0.375}, 0.75)
    path = choices / "no_clip_vloss__vanilla_mtppo__1"
    choice_run(path, "vanilla_mtppo", 1, {500_000: 0.3}, {500_000: 0.5}, 0.25)
    process = run("choices.py", base, "--choices", choices, "--show-hashes")
    (choices / "choices_note.md").write_text(
        f"<!-- runs: {process.stdout.strip()} -->\nSo we keep 0.\n"
    )
    assert not (choices / "choices.png").exists()
    process = run("choices.py", base, "--choices", choices, "--page", page)
    assert (process.returncode, process.stderr) == (0, "")

    lines = page.read_text().splitlines()
    default, *scores = cells(lines, "log-std start, TOPPO")
    assert default == "0 (default)"
    assert scores[:3] == ["1, 2*", "0.5 M", "57.5 (55.0, 60.0)"]
    assert scores[3:] == ["30.0 (30.0, 30.0)", "25.0 (25.0, 25.0)", "50.0 (50.0, 50.0)"]
    assert "|  | -1 | 1 | 0.5 M | 40.0 | 40.0 | 37.5 | 75.0 |" in lines
    vanilla = "on (default) | 1 | 0.5 M | 10.0 | 10.0 | 20.0 | 12.5"
    assert row(lines, "value clip, vanilla") == vanilla
    assert "|  | off | 1 | 0.5 M | 30.0 | 30.0 | 50.0 | 25.0 |" in lines
    assert "![curves](../choices/choices.png)" in lines
    assert lines[-1] == "So we keep 0."
    (absent,) = [line for line in lines if line.startswith("Not run yet: ")]
    assert "last value of an episode, TOPPO; value clip, TOPPO; PCGrad, TOPPO" in absent
    assert (choices / "choices.png").read_bytes()[:4] == b"\x89PNG"

    # On MT50 with its own default, and MT10's run of that name left out of it
    assert "Adam's ε, vanilla, MT50; Adam's ε, TOPPO, MT50" in absent
    logged = {tag: {500_000: 0.5} for tag in ("train_success/mean", "explained_variance/mean")}
    for path, rate in (("base/fifty", 0.25), ("choices/adam_eps_1e-8__vanilla_mtppo__3", 0.5)):
        success = {0: 0, 0.5: rate}
        mt50_run(tmp_path / path, "vanilla_mtppo", 3, success, scalars=logged, commit="8c12525")
    path = choices / "adam_eps_1e-8__vanilla_mtppo__1"
    choice_run(path, "vanilla_mtppo", 1, {500_000: 0.75}, {500_000: 0.5}, 0.25)
    assert run("choices.py", base, "--choices", choices, "--page", page).returncode == 0
    lines = page.read_text().splitlines()
    fifty = "1e-5 (default) | 3 | 0.5 M | 25.0 | 25.0 | 50.0 | 50.0"
    assert row(lines, "Adam's ε, vanilla, MT50") == fifty
    assert "|  | 1e-8 | 3 | 0.5 M | 50.0 | 50.0 | 50.0 | 50.0 |" in lines
    assert row(lines, "value clip, vanilla") == vanilla

    # Without the value clip, among the runs with the default choices
    assert "value clip, TOPPO" in absent
    off = {"clip_vloss": False}
    choice_run(base / "off", "toppo_mt50", 3, {500_000: 0.75}, {500_000: 0.5}, 0.25, **off)
    assert run("choices.py", base, "--choices", choices, "--page", page).returncode == 0
    lines = page.read_text().splitlines()
    assert cells(lines, "value clip, TOPPO")[:2] == ["on (default)", "1, 2*"]
    assert "|  | off | 3 | 0.5 M | 75.0 | 75.0 | 50.0 | 25.0 |" in lines
    assert cells(lines, "log-std start, TOPPO") == [default, *scores]

    # One that got further is compared there with those that did, too
    success = {500_000: 0.5, 1_000_000: 0.875}
    choice_run(base / "off too", "toppo_mt50", 4, success, {500_000: 0.5}, 0.25, **off)
    assert run("choices.py", base, "--choices", choices, "--page", page).returncode == 0
    lines = page.read_text().splitlines()
    (first,) = [n for n, line in enumerate(lines) if line.startswith("| value clip, TOPPO |")]
    expected = [
        "| value clip, TOPPO | on (default) | 1, 2* | 0.5 M | 57.5 (55.0, 60.0) |",
        "|  | off | 3, 4 | 0.5 M | 62.5 (75.0, 50.0) |",
        "|  | on (default) | 1, 2* | 1 M | 100.0 (100.0, 100.0) |",
        "|  | off | 4 | 1 M | 87.5 |",
    ]
    for line, begin in zip(lines[first:], expected):
        assert line.startswith(begin), line
    assert lines[first + 4].startswith("| value clip, vanilla |")
    assert cells(lines, "log-std start, TOPPO") == [default, *scores]

    # Of other runs, and with the page where the runs are
    path = choices / "pcgrad_sum__toppo_mt50__1"
    choice_run(path, "toppo_mt50", 1, {500_000: 0.5}, {500_000: 0.5}, 0.25)
    process = run("choices.py", base, "--choices", choices)
    assert process.returncode == 0, process.stderr
    lines = (choices / "index.md").read_text().splitlines()
    assert "So we keep 0." not in lines
    command = f"python paper/choices.py {base} --choices {choices} --show-hashes"
    assert command in process.stderr and command in lines[-1]


def test_learning_curves(tmp_path):
    """Two runs of a script are told apart by a number; tags that are not listed are left out."""
    logged = {
        "train_success/mean": {500: 0.25, 1000: 0.5},
        "explained_variance/mean": {500: 0.125, 1000: 0.75},
        "gradients/actor_combined_norm": {500: 3.0},
        "popart_mu/mean": {500: 1.0},
    }
    for seed in (1, 2):
        write_run(tmp_path / f"run{seed}", "mine", seed, {0: 0, 1000: RAMP}, logged)
    out = tmp_path / "out"
    paths = [tmp_path / "run1", tmp_path / "run2"]
    process = run("learning_curves.py", *paths, "--out", out)
    assert process.returncode == 0, process.stderr
    assert (out / "mine_1_evals.csv").read_text() == (paths[0] / "evals.csv").read_text()
    written = (out / "mine_2_scalars.csv").read_text().split()
    assert written == [
        "step,tag,value",
        "500,explained_variance/mean,0.125",
        "500,gradients/actor_combined_norm,3",
        "500,train_success/mean,0.25",
        "1000,explained_variance/mean,0.75",
        "1000,train_success/mean,0.5",
    ]
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
