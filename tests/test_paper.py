"""Tables and figures of success, from run directories written here; expected numbers are worked out by hand."""

import csv
import json
import subprocess
import sys
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
TEN = [f"task{k}-v3" for k in range(10)]
RAMP = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
HALVES = [0.3] * 5 + [0.9] * 5


def write_run(path, script, seed, success, scalars=None, tasks=TEN, **args):
    """A run directory. success: {step: rate or K rates}; scalars: {tag: {step: value}}, written as TensorBoard events."""
    path.mkdir(parents=True)
    given = {"script": script, "seed": seed, "benchmark": "MT10", "tasks": [], "reward_version": "v2", "num_steps": 500, **args}
    (path / "args.json").write_text(json.dumps(given))
    lines = ["step,task,episodes,success_rate,mean_return"]
    for step, rates in success.items():
        lines += [f"{step},{task},50,{rate},0.0" for task, rate in zip(tasks, np.broadcast_to(rates, len(tasks)))]
    (path / "evals.csv").write_text("\n".join(lines) + "\n")
    rows = [(step, tag, value) for tag, series in (scalars or {}).items() for step, value in series.items()]
    if rows:
        writer = EventFileWriter(str(path))
        for step, tag, value in rows:
            writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
        writer.close()
    return path


def make(name, paths, out):
    """The lines of table or figure NAME as a script writes it to out. A PNG is there for figures and for nothing else."""
    for script in ALL.SCRIPTS:
        items = import_module(script).ITEMS
        if name in items:
            made = r.produce({name: items[name]}, r.load_runs(paths), out)[name]
            if isinstance(made, r.Missing):
                raise made
            assert (out / f"{name}.png").exists() == name.startswith("figure")
            if name.startswith("figure"):
                assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
            return (out / f"{name}.md").read_text().splitlines()
    raise ValueError(name)


def cells(lines, start):
    """The cells, after the first, of the one row that begins with start."""
    (row,) = [line for line in lines if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def rows(lines, start):
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith(f"| {start} |")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of TOPPO and one of other scripts on MT10 with V2 rewards, to 800,000 steps."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "toppo1", "toppo_mt50", 1, {0: 0, 400_000: 0.5, 800_000: RAMP})
    write_run(folder / "toppo2", "toppo_mt50", 2, {0: 0, 400_000: 0.7, 800_000: HALVES})
    write_run(folder / "vanilla", "vanilla_mtppo", 1, {0: 0, 400_000: 0.2, 800_000: [0] * 9 + [1]})
    finals = {"ln": 0.2, "ln_popart": 0.3, "ln_fairgrad": 0.4, "ln_popart_fairgrad": 0.45, "popart": 0.15, "popart_fairgrad": 0.1}
    for script, rate in finals.items():
        write_run(folder / script, script, 1, {0: 0, 400_000: 0.1, 800_000: rate})
    return folder


def test_table_2(runs, tmp_path):
    """TOPPO: means 55 and 60, std 5 / sqrt 2; worst 1: 10 and 30; worst 3: 20 and 30; worst 5: 30 and 30."""
    lines = make("table_2", [runs], tmp_path)
    assert "## MT10, V2, 0.8 M steps of the paper's 20 M" in lines
    assert "Few seeds, n = 1 to 2; the paper has 10." in lines
    assert "| method | n | mean of 10 | paper's mean | worst 1 | worst 3 | worst 5 |" in lines
    assert cells(lines, "TOPPO") == ["2", "57.5 ± 3.5", "97.2 at 20 M", "20.0 ± 14.1", "25.0 ± 7.1", "30.0 ± 0.0"]
    assert cells(lines, "Vanilla MT-PPO") == ["1", "10.0", "–", "0.0", "0.0", "0.0"]
    order = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert order == ["Vanilla MT-PPO", "+LN-c", "+LN-c +PopArt", "+LN-c +FG-c", "+LN-c +PopArt +FG-c", "TOPPO", "+PopArt",
                     "+PopArt +FG-c"]  # fmt: skip


def test_one_seed_is_called_an_illustration(runs, tmp_path):
    lines = make("table_2", [runs / "vanilla", runs / "toppo1"], tmp_path)
    assert "One seed each: an illustration, no comparison." in lines
    assert cells(lines, "TOPPO")[:2] == ["1", "55.0"]


def test_fewer_goals_are_said(runs, tmp_path):
    half = write_run(tmp_path / "half", "ln", 1, {0: 0, 800_000: 0.5}, eval_episodes=25)
    assert "Evaluated on 25 of each task's 50 training goals." in make("table_2", [half], tmp_path)
    assert not any("of each task's" in line for line in make("table_2", [runs / "ln"], tmp_path))


def test_table_d4_is_of_v1(runs, tmp_path):
    v1 = write_run(tmp_path / "v1", "toppo_mt50", 1, {0: 0, 800_000: RAMP}, reward_version="v1")
    lines = make("table_d4", [runs, v1], tmp_path)
    assert [line for line in lines if line.startswith("##")] == ["## MT10, V1, 0.8 M steps of the paper's 20 M"]
    assert cells(lines, "TOPPO") == ["1", "55.0", "–", "10.0", "20.0", "30.0"]


def trimmed_mean(values):
    """Of the sorted values without the lowest and the highest quarter, each rounded down."""
    values, cut = sorted(values), len(values) // 4
    return sum(values[cut : len(values) - cut]) / (len(values) - 2 * cut)


def test_tables_3_and_d3(runs, tmp_path):
    """TOPPO on V2: of the 20 rates 0.3 (x3), 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 (x2) are left, mean 0.57; the seeds' own IQM are 0.55
    and 0.6. On V1: 0.6 and 0.62 everywhere, IQM 0.61. The interval is checked against a bootstrap written out here."""
    both = {"toppo1": 0.6, "toppo2": 0.62}
    v1 = [write_run(tmp_path / name, "toppo_mt50", i + 1, {0: 0, 800_000: x}, reward_version="v1") for i, (name, x) in
          enumerate(both.items())]  # fmt: skip
    v1 += [write_run(tmp_path / "ln", "ln", 1, {0: 0, 800_000: RAMP}, reward_version="v1")]
    lines = make("table_3", [runs, *v1], tmp_path)
    toppo = cells(lines, "TOPPO")
    assert (toppo[0], toppo[1], toppo[3]) == ("2", "61.0 ± 1.4", "–")  # the paper's is on MT50
    assert cells(lines, "+LN-c") == ["1", "55.0", "–", "–"]  # (0.3 + ... + 0.8) / 6

    lines = make("table_d3", [runs, *v1], tmp_path)
    assert cells(lines, "TOPPO")[:4] == ["2", "61.0 ± 1.4", toppo[2], "–"]
    n, value, interval, gap = cells(lines, "TOPPO")[4:]
    assert (n, value, gap) == ("2", "57.0 ± 3.5", "-4.0")
    assert cells(lines, "Vanilla MT-PPO") == ["–", "–", "–", "–", "1", "0.0", "–", "–"]
    assert cells(lines, "+LN-c")[-4:] == ["1", "20.0", "–", "-35.0"]
    rng, scores = np.random.default_rng(1), np.array([RAMP, HALVES])
    draws = [trimmed_mean([scores[rng.integers(2), k] for _ in range(2) for k in range(10)]) for _ in range(4000)]
    np.testing.assert_allclose([float(x) for x in interval.split(" to ")], 100 * np.quantile(draws, [0.025, 0.975]), atol=1.0)
    success = rng.random((2, 1, 10))
    np.testing.assert_array_equal(r.iqm(success)[1], r.iqm(success)[1])  # rliable's draws are seeded


def test_table_d1(runs, tmp_path):
    lines = make("table_d1", [runs], tmp_path)
    assert cells(lines, "`ablations/ln_popart_fairgrad.py`") == ["✓", "✓", "✓", "1", "45.0", "45.0"]
    assert cells(lines, "`vanilla_mtppo.py`") == ["–", "–", "–", "1", "10.0", "0.0"]
    assert not any("toppo" in line for line in lines)
    assert cells(lines, "with LN-c, no FG-c") == ["+10.0", "+10.0"]  # 20 to 30
    assert cells(lines, "with LN-c, with FG-c") == ["+5.0", "+5.0"]  # 40 to 45
    assert cells(lines, "no LN-c, no FG-c") == ["+5.0", "+15.0"]  # 10 to 15; worst 3: 0 to 15
    assert not rows(lines, "no LN-c, with FG-c")  # there is no run of fairgrad.py


def test_table_d2(runs, tmp_path):
    lines = make("table_d2", [runs], tmp_path)
    default, fairgrad = rows(lines, "default")
    assert (default, fairgrad) == (["default", "1", *["30.0"] * 3, "–"], ["FG (α = 1)", "1", *["45.0"] * 3, "–"])
    critic, n, best, final, iqm, paper = cells(lines, "PCGrad")
    assert (critic, n, best, final, paper) == ("FG (α = 1)", "2", "62.5 ± 10.6", "57.5 ± 3.5", "97.2 at 20 M")  # 55, 70; 55, 60
    assert iqm.startswith("57.0 (")


def test_table_d5_is_worst_first(runs, tmp_path):
    """By TOPPO's mean over seeds: task0 (10 + 30) / 2 = 20, std 20 / sqrt 2, to task9 (100 + 90) / 2 = 95."""
    lines = make("table_d5", [runs], tmp_path)
    order = [line.split("|")[1].strip() for line in lines if line.startswith("| task")][1:]
    assert order == TEN
    header = [line for line in lines if line.startswith("| task |")][0].split("|")
    column = header.index(" TOPPO, n = 2 ") - 2
    assert cells(lines, "task0-v3")[column] == "20.0 ± 14.1"
    assert cells(lines, "task9-v3")[column] == "95.0 ± 7.1"
    assert cells(lines, "task9-v3")[0] == "100.0" and cells(lines, "task8-v3")[0] == "0.0"  # vanilla


def test_tables_of_other_sets(tmp_path):
    """V1 on MT10 and named tasks are in no table or figure of the paper's; two of the same mean are in order of name."""
    named = write_run(tmp_path / "a", "ln", 1, {0: 0, 3000: [1, 0.5, 0.5]}, tasks=["c-v3", "b-v3", "a-v3"], num_steps=1, **{
        "benchmark": "MT50", "reward_version": "v1"})  # fmt: skip
    args = json.loads((named / "args.json").read_text())
    (named / "args.json").write_text(json.dumps(args | {"tasks": ["c-v3", "b-v3", "a-v3"]}))
    lines = make("table_d5_other_sets", [named], tmp_path)
    assert "## a, b, c, V1, 0.003 M steps" in lines
    assert [line for line in lines if "-v3" in line] == ["| a-v3 | 50.0 |", "| b-v3 | 50.0 |", "| c-v3 | 100.0 |"]
    assert "## a, b, c, V1, 0.003 M steps" in make("figure_d8_other_sets", [named], tmp_path)


def test_table_d10(runs, tmp_path):
    """Peak: at 400,000 steps the seeds' means are 50 and 70. Late: of three checkpoints, the last."""
    lines = make("table_d10", [runs], tmp_path)
    assert cells(lines, "TOPPO") == ["2", "62.5 ± 10.6", "60.0", "57.5 ± 3.5", "57.5 ± 3.5", "97.2 at 20 M"]
    assert cells(lines, "Vanilla MT-PPO") == ["1", "20.0", "20.0", "10.0", "10.0", "–"]


def test_late_is_the_last_tenth(tmp_path):
    """30 checkpoints of 0, but for 0.5, 0.7, 0.9 and 0.6 at the end: the last three."""
    success = {400_000 * i: {26: 0.5, 27: 0.7, 28: 0.9, 29: 0.6}.get(i, 0) for i in range(30)}
    lines = make("table_d10", [write_run(tmp_path / "run", "ln", 1, success)], tmp_path)
    assert cells(lines, "+LN-c") == ["1", "90.0", "90.0", "60.0", "73.3", "–"]


def test_table_d11(runs, tmp_path):
    """TOPPO's seeds are best at 0.8 and 0.4 M."""
    lines = make("table_d11", [runs], tmp_path)
    assert cells(lines, "TOPPO") == ["2", "0.6", "[0.5, 0.7]", "0.4–0.8", "12.6", "[9.4, 17.2]", "7.2–19.6"]
    assert cells(lines, "Vanilla MT-PPO")[:4] == ["1", "0.4", "–", "–"]


def test_table_b2(tmp_path):
    lines = make("table_b2", [], tmp_path)
    assert cells(lines, "Vanilla MT-PPO") == ["`vanilla_mtppo.py`", "683,645", "715,805", "684K", "716K"]
    assert cells(lines, "+LN-c") == ["`ablations/ln.py`", "684,845", "717,005", "685K", "717K"]
    assert cells(lines, "TOPPO") == ["`toppo_mt50.py`", "684,865", "717,105", "685K", "717K"]
    assert cells(lines, "Meta-World+: MOORE") == ["6810K", "10385K"]


def test_runs_of_different_lengths_are_compared_at_equal_steps(tmp_path):
    """A run that ends at 1 M was evaluated there, one that goes on to 2 M was not: both were at 0.8 M."""
    write_run(tmp_path / "r/ln", "ln", 1, {0: 0, 400_000: 0.1, 800_000: 0.2, 1_000_000: 0.9})
    write_run(tmp_path / "r/toppo1", "toppo_mt50", 1, {400_000 * i: i / 10 for i in range(6)})
    write_run(tmp_path / "r/toppo2", "toppo_mt50", 2, {400_000 * i: i / 5 for i in range(4)})
    write_run(tmp_path / "r/started", "vanilla_mtppo", 1, {0: 0})
    lines = make("table_2", [tmp_path / "r"], tmp_path)
    titles = [f"## MT10, V2, {step} M steps of the paper's 20 M" for step in (0.8, 1.2, 2)]
    assert [line for line in lines if line.startswith("##")] == titles
    sections = [lines[lines.index(a) : lines.index(b) if b else None] for a, b in zip(titles, [*titles[1:], None])]
    assert cells(sections[0], "+LN-c")[:2] == ["1", "20.0"] and cells(sections[0], "TOPPO")[:2] == ["2", "30.0 ± 14.1"]
    assert cells(sections[1], "TOPPO")[:2] == ["2", "45.0 ± 21.2"] and not rows(sections[1], "+LN-c")
    assert cells(sections[2], "TOPPO")[:2] == ["1", "50.0"]
    assert not rows(lines, "Vanilla MT-PPO")
    lines = make("table_d2", [tmp_path / "r"], tmp_path)  # TOPPO alone is no comparison, but all there is
    assert len(rows(lines, "PCGrad")) == 2
    write_run(tmp_path / "r/default", "ln_popart", 1, {0: 0, 400_000: 0.1, 800_000: 0.2})
    assert len(rows(make("table_d2", [tmp_path / "r"], tmp_path), "PCGrad")) == 1


def drawn(name, paths):
    """A figure's visible axes: {title: ({label: (x, y)} of its lines, number of bands)}."""
    figure = {k: f for s in ALL.SCRIPTS for k, f in import_module(s).ITEMS.items()}[name](r.load_runs(paths))[2]
    r.plt.close(figure)
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    return {title: ({line.get_label(): line.get_data() for line in a.lines}, len(a.collections)) for title, a in axes.items()}


def test_figure_1(runs, tmp_path):
    """Curves of TOPPO's seeds' mean; a band for it alone, as the other has one seed."""
    paths = [runs / "vanilla", runs / "toppo1", runs / "toppo2"]
    lines = make("figure_1", paths, tmp_path)
    assert cells(lines, "TOPPO") == ["2", "57.5 ± 3.5", "30.0 ± 0.0", "25.0 ± 7.1", "20.0 ± 14.1"]
    panels = drawn("figure_1", paths)
    assert [*panels] == ["MT10: all 10 tasks, n = 1 to 2", "worst 5", "worst 3", "worst 1"]
    for title, vanilla, toppo in (
        ("MT10: all 10 tasks, n = 1 to 2", [0, 20, 10], [0, 60, 57.5]),
        ("worst 3", [0, 20, 0], [0, 60, 25]),
    ):
        curves, bands = panels[title]
        assert bands == 1
        np.testing.assert_allclose(curves["Vanilla MT-PPO"], [[0, 0.4, 0.8], vanilla])
        np.testing.assert_allclose(curves["TOPPO"], [[0, 0.4, 0.8], toppo])


def test_figure_4(runs, tmp_path):
    lines = make("figure_4", [runs], tmp_path)
    assert cells(lines, "TOPPO") == ["2", "57.5 ± 3.5", "25.0 ± 7.1"] and not rows(lines, "+PopArt")
    curves, _ = drawn("figure_4", [runs])["MT10, V2, 0.8 M steps"]
    np.testing.assert_allclose(curves["mean"][1], [10, 20, 30, 40, 45, 57.5])
    np.testing.assert_allclose(curves["worst 3"][1], [0, 20, 30, 40, 45, 25])


@pytest.mark.parametrize("name, reward", [("figure_d6", "v2"), ("figure_d7", "v1")])
def test_figures_d6_and_d7(name, reward, tmp_path):
    paths = [write_run(tmp_path / f"{x}{seed}", "toppo_mt50", seed, {0: 0, 400_000: y}, reward_version=x)
             for x in ("v1", "v2") for seed, y in ((1, 0.25), (2, 0.75))]  # fmt: skip
    assert cells(make(name, paths, tmp_path), "TOPPO") == ["2", "50.0 ± 35.4"]
    ((title, (curves, bands)),) = drawn(name, paths).items()
    assert (title, bands) == (f"MT10, {reward.upper()}, 0.4 M steps", 1)
    np.testing.assert_allclose(curves["TOPPO (n = 2)"], [[0, 0.4], [0, 50]])
    assert ("paper's TOPPO at 20 M: 97.2" in curves) == (reward == "v2")


def test_figure_d8(runs, tmp_path):
    paths = [runs / "vanilla", runs / "toppo1", runs / "toppo2"]
    assert cells(make("figure_d8", paths, tmp_path), "TOPPO") == ["2"]
    panels = drawn("figure_d8", paths)
    assert [*panels] == TEN
    np.testing.assert_allclose(panels["task9-v3"][0]["TOPPO"], [[0, 0.4, 0.8], [0, 60, 95]])
    np.testing.assert_allclose(panels["task9-v3"][0]["Vanilla MT-PPO"][1], [0, 20, 100])


@pytest.mark.parametrize("reward, names", [("v2", ("table_d6", "figure_d9")), ("v1", ("table_d7", "figure_d10"))])
def test_mt50(reward, names, tmp_path):
    """Task k ends at k / 100."""
    tasks = [f"task{k:02}-v3" for k in range(50)]
    run = write_run(tmp_path / "run", "toppo_mt50", 1, {0: 0, 1_000_000: np.arange(50) / 100}, tasks=tasks, benchmark="MT50",
                    reward_version=reward)  # fmt: skip
    lines = make(names[0], [run], tmp_path)
    assert [line for line in lines if "-v3" in line] == [f"| task{k:02}-v3 | {k}.0 |" for k in range(50)]
    panels = drawn(names[1], [run])
    assert [*panels] == tasks
    np.testing.assert_allclose(panels["task42-v3"][0]["TOPPO"], [[0, 1], [0, 42]])


def test_what_is_missing_is_said_with_the_command_that_makes_it(runs, tmp_path):
    """On one line each, and the command names a script of the repository and a flag of it."""
    flags = set(vars(import_module("vanilla_mtppo").Args()))
    for script in ALL.SCRIPTS:
        for name, result in r.produce(import_module(script).ITEMS, [], tmp_path).items():
            if name == "table_b2":
                continue  # needs no runs
            assert isinstance(result, r.Missing), name
            message = str(result)
            assert "\n" not in message
            words = message[message.index("python ") :].replace(",", "").split()
            assert (ROOT / words[1]).is_file(), message
            assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= flags, message
    with pytest.raises(r.Missing, match="on MT50 with V1 rewards .* toppo_mt50.py --benchmark MT50 --reward-version v1$"):
        make("table_d7", [runs], tmp_path)
    with pytest.raises(r.Missing, match="no run of ln_popart.py, .*; make one: python ablations/ln_popart.py$"):
        make("table_d2", [runs / "vanilla"], tmp_path)


def test_unusable_runs_are_refused(runs, tmp_path):
    def refused(paths):
        with pytest.raises(r.Missing) as reason:
            r.load_runs(paths)
        assert "\n" not in str(reason.value)
        return str(reason.value)

    assert refused([tmp_path / "none"]).endswith(f"make one: python toppo_mt50.py --run-dir {tmp_path / 'none'}")
    twin = write_run(tmp_path / "twin", "toppo_mt50", 2, {0: 0, 400_000: 0.5})
    assert refused([runs, twin]) == f"{runs / 'toppo2'} and {twin} are both seed 2 of toppo_mt50.py: leave one out"
    other = write_run(tmp_path / "other", "toppo_mt50", 3, {0: 0, 400_000: 0.5}, num_steps=1000)
    assert refused([runs, other]) == f"{runs / 'vanilla'} and {other} differ in --num-steps: show them in separate calls"
    unknown = write_run(tmp_path / "unknown", "mine", 3, {0: 0})
    assert refused([unknown]) == f"{unknown}: a run of mine.py, which is none of the repository's scripts"
    new = write_run(tmp_path / "new", "ln", 3, {})
    assert refused([new]) == f"{new}: no evaluation in evals.csv; go on with: python ablations/ln.py --resume {new}"


def run(script, *arguments):
    command = [sys.executable, ROOT / "paper" / script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_script_alone(runs, tmp_path):
    process = run("table_2_d4_worst_k.py", runs, "--out", tmp_path)
    assert process.returncode == 0 and process.stdout == f"wrote {tmp_path}/table_2.md\n"
    missing = "table_d4: no run of any script with V1 rewards that was evaluated after step 0; make one: python toppo_mt50.py"
    assert process.stderr == f"{missing} --reward-version v1\n"
    assert cells((tmp_path / "table_2.md").read_text().splitlines(), "TOPPO")[1] == "57.5 ± 3.5"
    process = run("table_2_d4_worst_k.py", tmp_path / "none")
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "--run-dir" in process.stderr


def test_all(runs, tmp_path):
    """With success alone, what needs scalars, dumps, V1 or MT50 is listed as not made; the rest is on the page."""
    out, page = tmp_path / "results/paper", tmp_path / "docs/results.md"
    out.mkdir(parents=True)
    (out / "table_2_note.md").write_text("What we make of it.\n")
    process = run("all.py", runs, "--out", out, "--page", page)
    assert process.returncode == 0, process.stderr
    lines = page.read_text().splitlines()
    made = {file.stem for file in out.glob("*.md")} - {"table_2_note"}
    assert made == {"table_2", "table_d1", "table_d2", "table_d5", "table_d10", "table_d11", "table_b2", "figure_1", "figure_4",
                    "figure_d6", "figure_d8"}  # fmt: skip
    for name in made:
        assert f"[{name}.md](../results/paper/{name}.md)" in lines
        assert name.startswith("table") or any(line.endswith(f"(../results/paper/{name}.png)") for line in lines)
    skipped = lines[lines.index("## Not made") + 2 :]
    names = {line.split(":")[0][2:] for line in skipped}
    assert len(made) + len(names) == sum(len(import_module(script).ITEMS) for script in ALL.SCRIPTS) and "figure 3" in names
    assert all("python " in line for line in skipped)
    assert lines.count("What we make of it.") == 1
    assert cells(lines, "toppo2") == ["MT10", "V2", "TOPPO", "`toppo_mt50.py`", "2", "0.8 M", "0"]
    assert ["2", "57.5 ± 3.5", "97.2 at 20 M", "20.0 ± 14.1", "25.0 ± 7.1", "30.0 ± 0.0"] in rows(lines, "TOPPO")
    theorem = [line.split("(")[1][:-1] for line in lines if "figure_d5_theorem1.png" in line]
    assert [(page.parent / path).resolve() for path in theorem] == [ROOT / "results/figure_d5_theorem1.png"]


def test_published_best_steps_are_in_the_papers_order():
    """Median within the quartiles, those within the range, all within the budget: guards against a slip in copying."""
    published = import_module("published")
    for (_, task_set), (median, low, high, least, most) in published.BEST_STEP.items():
        assert least <= low <= median <= high <= most <= published.BUDGET[task_set]


def test_evals_csv_is_what_the_scripts_write(tmp_path):
    """The header of write_run, which stands for a run here, is the training scripts' own."""
    path = write_run(tmp_path / "run", "ln", 1, {0: 0})
    header = next(csv.reader(open(path / "evals.csv")))
    assert repr(tuple(header))[1:-1].replace("'", '"') in (ROOT / "toppo_mt50.py").read_text()


def choice_run(path, script, seed, success, train, variance):
    scalars = {"train_success/mean": {100_000: 0.0, **train}, "explained_variance/mean": dict.fromkeys(train, variance)}
    return write_run(path, script, seed, {0: 0, **success}, scalars)


def test_choices(tmp_path):
    """Compared at 500,000 steps, the last that all of a choice's runs have: worst three of RAMP 20, of HALVES 30."""
    base, choices, page = tmp_path / "base", tmp_path / "choices", tmp_path / "docs" / "choices.md"
    for seed, rates in (1, RAMP), (2, HALVES):
        choice_run(base / f"toppo{seed}", "toppo_mt50", seed, {500_000: rates, 1_000_000: 1}, {500_000: 0.25, 900_000: 1}, 0.5)
    choice_run(base / "vanilla", "vanilla_mtppo", 1, {500_000: 0.1}, {500_000: 0.2}, 0.125)
    choice_run(choices / "log_std_-1.0__toppo_mt50__1", "toppo_mt50", 1, {500_000: 0.4}, {500_000: 0.375}, 0.75)
    choice_run(choices / "no_clip_vloss__vanilla_mtppo__1", "vanilla_mtppo", 1, {500_000: 0.3}, {500_000: 0.5}, 0.25)
    (choices / "choices_note.md").write_text("So we keep 0.\n")
    page.parent.mkdir()
    command = [sys.executable, "paper/choices.py", base, "--choices", choices, "--page", page]
    process = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    lines = page.read_text().splitlines()
    assert cells(lines, "log-std start, TOPPO") == ["0 (default)", "1, 2", "0.5 M", "57.5 (55.0, 60.0)", "25.0 (20.0, 30.0)",
                                                    "25.0 (25.0, 25.0)", "50.0 (50.0, 50.0)"]  # fmt: skip
    assert "|  | -1 | 1 | 0.5 M | 40.0 | 40.0 | 37.5 | 75.0 |" in lines
    assert cells(lines, "value clip, vanilla") == ["on (default)", "1", "0.5 M", "10.0", "10.0", "20.0", "12.5"]
    assert "|  | off | 1 | 0.5 M | 30.0 | 30.0 | 50.0 | 25.0 |" in lines
    assert "![curves](../choices/choices.png)" in lines and lines[-1] == "So we keep 0."
    assert [line for line in lines if line.startswith("Not run yet: last value of an episode, TOPPO; value clip, TOPPO; PCGrad")]
    assert (choices / "choices.png").read_bytes()[:4] == b"\x89PNG"
