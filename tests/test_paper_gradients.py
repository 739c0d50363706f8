"""Figures of gradients, from scalars and gradient dumps written here, and how dumps are made.

Expected numbers are worked out by hand; dumps are held to what a run itself followed.
"""

import csv
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import fsolve
from test_paper import cells, item, make, r, row, rows, run, write_run

ABC = ["a-v3", "b-v3", "c-v3"]

# Of a dump before the first step, then of a first, a middle and a last one: gradients of a, b and
# c, and PopArt's sigma
INITIAL = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1, 1, 1]
SKEWED = [[3, 0, 0], [0, 4, 0], [3, 4, 12]], [1, 2, 1]  # norms 3, 4, 13, cosines 0, 3/13, 4/13
ORTHOGONAL = [[1, 0, 0], [0, 2, 0], [0, 0, 4]], [1, 1, 1]
CLOSE = [[1, 0, 0], [1, 1, 0], [1, 1, 1]], [1, 1, 10]  # cosines 1 / sqrt 2, 1 / sqrt 3, 2 / sqrt 6


def write_dumps(path, *dumps):
    """Dumps of collects 0, 1.. at steps 0, 100.. from (critic gradients [K, D], sigma or None)."""
    (path / "gradients").mkdir()
    for i, (gradients, sigma) in enumerate(dumps):
        num_tasks = len(gradients)
        arrays = {
            "tasks": ABC[:num_tasks],
            "collect": i,
            "global_step": 100 * i,
            "actor_gradients": np.arange(4 * num_tasks, dtype=np.float32).reshape(num_tasks, 4),
            "critic_gradients": np.array(gradients, np.float32),
            "actor_weights": np.full(num_tasks, 1 / num_tasks),
            "critic_weights": np.full(num_tasks, 1 / num_tasks),
        }
        if sigma is not None:
            arrays["popart_mu"] = np.zeros(num_tasks)
            arrays["popart_sigma"] = np.array(sigma, float)
        np.savez_compressed(path / f"gradients/collect_{i:05}.npz", **arrays)
    return path


def curve(*values):
    """At steps 100, 200 and 300; what comes after the last evaluation at 300 does not count."""
    return dict(zip((100, 200, 300, 400), (*values, 1e9)))


def scalars(critic, actor, ratio, cosine, sigma):
    """{tag: {step: value}}, the actor's norms 1, 1, 2 and the critic's 1, 2, 4."""
    found = {
        "gradients/critic_log10_norm_spread": curve(*critic),
        "gradients/actor_log10_norm_spread": curve(*actor),
        "gradients/critic_combined_norm": curve(*(4 * x for x in ratio)),
        "gradients/actor_combined_norm": curve(4, 4, 4),
        "gradients/critic_mean_cosine": curve(*cosine),
        "gradients/critic_top1_share": curve(0.9, 0.8, 0.7),
    }
    for k, task in enumerate(ABC):
        found[f"actor_gradient_norm/{task}"] = curve(*3 * [(1, 1, 2)[k]])
        found[f"critic_gradient_norm/{task}"] = curve(*3 * [(1, 2, 4)[k]])
        if sigma:
            found[f"popart_sigma/{task}"] = curve(*3 * [sigma[k]])
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of ln_popart.py, one of popart.py, popart_fairgrad.py and vanilla_mtppo.py."""
    folder = tmp_path_factory.mktemp("runs")

    def write(name, script, seed, *values):
        return write_run(folder / name, script, seed, {0: 0, 300: 0.5}, scalars(*values), ABC)

    write("a1", "ln_popart", 1, (1, 2, 3), (0, 1, 0), (0.1, 0.2, 0.4), (0.5, 0.4, 0.3), (1, 2, 0.5))
    write("a2", "ln_popart", 2, (1, 1, 2), (0, 1, 0), (0.3, 0.4, 0.8), (0.3, 0.2, 0.1), (1, 1, 1))
    write("b", "popart", 1, (2, 2, 2), (0, 0, 0), (5, 6, 7), (0.9, 0.8, 0.7), (1, 1, 1))
    write("c", "popart_fairgrad", 1, (0, 0, 0), (0, 0, 0), (1, 1, 1), (0, 0, 0), (1, 1, 1))
    write("d", "vanilla_mtppo", 1, (2, 2, 2), (1, 1, 1), (3, 3, 3), (0, 0, 0), None)
    write_dumps(folder / "a2", INITIAL, ORTHOGONAL, CLOSE)
    write_dumps(folder / "b", INITIAL, SKEWED, ORTHOGONAL, CLOSE)
    write_dumps(folder / "c", INITIAL, SKEWED, ORTHOGONAL, CLOSE)
    return folder


def test_figure_2(runs, tmp_path):
    """ln_popart.py has spreads 10, 100, 1000 and 10, 10, 100.

    Its norms times sigma^2 are 1, 8, 1 and 1, 2, 4, spreads 8 and 4.
    """
    lines = make("figure_2", [runs], tmp_path)
    first, *others = rows(lines, "+LN-c +PopArt")
    assert not others
    n, critic, raw, actor, critic_to_actor, ratio = first
    assert (n, critic, raw, actor) == ("2", "10 → 55 → 550", "6 → 6 → 6", "1 → 10 → 1")
    assert (critic_to_actor, ratio) == ("10 → 5.5 → 550", "0.2 → 0.3 → 0.6")
    ten = "10 → 10 → 10"
    assert row(lines, "Vanilla MT-PPO") == f"1 | 100 → 100 → 100 | – | {ten} | {ten} | 3 → 3 → 3"

    figure = import_module("figure_2_d2_norm_spread").figure_2(r.load_runs([runs]))[2]
    color = r.COLORS["ln_popart"]
    own = [line for line in figure.axes[0].lines if line.get_color() == color]
    solid, dotted = [line for line in own if line.get_linewidth() > 1]  # the thin ones are seeds
    log10_mean = [1, 1.5, 2.5]  # of two seeds
    np.testing.assert_allclose(solid.get_data(), [[1e-4, 2e-4, 3e-4], log10_mean])
    np.testing.assert_allclose(dotted.get_ydata(), 3 * [np.log10(np.sqrt(8 * 4))])
    r.plt.close(figure)


def test_figure_d2(runs, tmp_path):
    sides = [["actor", "2 → 2 → 2"], ["critic", "4 → 4 → 4"], ["critic × σ²", "6 → 6 → 6"]]
    found = rows(make("figure_d2", [runs], tmp_path), "MT10, V2, 0.0003 M steps")
    assert found == [["+LN-c +PopArt", "2", *side] for side in sides]
    found = rows(make("figure_d2", [runs / "d"], tmp_path), "MT10, V2, 0.0003 M steps")
    assert found == [["Vanilla MT-PPO", "1", *side] for side in sides[:2]]
    for path in (runs / "a1", runs / "d"):  # of which one has PopArt's third panel
        figure = item("figure_d2", [path])[2]
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        np.testing.assert_allclose(lines["c"].get_ydata(), 2)
        names = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
        assert names == ["a", "b", "c"] == [*lines]


@pytest.mark.parametrize("name", ["figure_2", "figure_d2", "figure_3", "figure_d1", "figure_d4"])
def test_sigma_is_said_to_be_of_discounted_returns(name, runs):
    text = " ".join(item(name, [runs])[1]).replace("\n", " ")
    assert "σ is PopArt's: the std of the critic's targets, which are discounted returns" in text
    other = "the sum of rewards up to the first success, `mean_return` in evals.csv"
    assert f"It is not that of {other}" in text


def test_tasks_are_told_apart_by_their_lines():
    """All of 14; of 20 the seven smallest and the seven largest, the others in grey."""

    def look(style):
        return style["color"], style["linestyle"]

    names = [f"task{k:02}-v3" for k in range(20)]
    styles = r.task_styles(names[:14], np.zeros(14))
    assert [style["label"] for style in styles.values()] == [name[:-3] for name in names[:14]]
    assert len({look(style) for style in styles.values()}) == 14
    styles = r.task_styles(names, np.arange(20)[::-1])
    named = {task: style for task, style in styles.items() if "label" in style}
    assert [*named] == names[:7] + names[13:]
    assert len({look(style) for style in named.values()}) == 14
    assert len({look(styles[task]) for task in names[7:13]}) == 1
    assert [*styles] == names


def test_figures_3_and_d1(runs, tmp_path):
    """Mean cosines: 7 / 39, 0 and (0.707 + 0.577 + 0.816) / 3.

    The first dump is of the initial networks, and is no stage. The columns with LN-c are of the
    seed that has dumps, three: beside them the columns without show these steps only.
    """
    lines = make("figure_d1", [runs / "b"], tmp_path)
    early = "+PopArt | b | early | 0.0001 M | 0.179"
    middle = "+PopArt | b | middle | 0.0002 M | 0.000 | 2 | 4"
    late = "+PopArt | b | late | 0.0003 M | 0.700 | 1.41"
    assert [" | ".join(found) for found in rows(lines, "no LN")] == [
        f"raw | {early} | 13 | 5.33",
        f"PopArt | {early} | 4 | 4.33",
        f"raw | {middle}",
        f"PopArt | {middle}",
        f"raw | {late} | 173",
        f"PopArt | {late} | 1.73",
    ]

    lines = make("figure_d1", [runs], tmp_path)
    for critic, source in (("LN-c", ["+LN-c +PopArt", "a2"]), ("no LN", ["+PopArt", "b"])):
        assert [found[:5] for found in rows(lines, critic)] == [
            ["raw", *source, "early", "0.0001 M"],
            ["PopArt", *source, "early", "0.0001 M"],
            ["raw", *source, "late", "0.0002 M"],
            ["PopArt", *source, "late", "0.0002 M"],
        ]
    assert not any("Not shown" in line for line in lines)

    lines = make("figure_3", [runs], tmp_path)
    found = [" | ".join(found) for found in rows(lines, "no LN")]
    assert found == [f"raw | {early} | 13 | 5.33", f"PopArt | {early} | 4 | 4.33"]
    assert len(rows(lines, "LN-c")) == 2


def heatmaps(paths, **kwargs):
    return import_module("figure_3_d1_critic_grams").heatmaps("", r.load_runs(paths), **kwargs)


def test_figures_3_and_d1_want_equal_steps(tmp_path):
    later = write_run(tmp_path / "later", "ln_popart", 1, {0: 0}, tasks=ABC)
    write_dumps(later, ORTHOGONAL, CLOSE)
    (later / "gradients/collect_00000.npz").unlink()
    first = write_run(tmp_path / "first", "popart", 1, {0: 0}, tasks=ABC)
    write_dumps(first, ORTHOGONAL)
    with pytest.raises(r.Missing, match="no gradient dumps at equal steps: .*first and .*later"):
        heatmaps([later, first], early_only=False)


def test_figure_3_compares_critics_on_the_same_tasks(runs, tmp_path):
    """The first with LN-c is of other rewards: there is one of V2 as well."""
    other = write_run(tmp_path / "other", "ln_popart", 0, {0: 0}, tasks=ABC, reward_version="v1")
    write_dumps(other, INITIAL, SKEWED, CLOSE)
    for paths in ([other, runs], [other, runs / "a2", runs / "b"]):
        lines = make("figure_3", paths, tmp_path)
        assert [found[2:4] for found in rows(lines, "LN-c")] == 2 * [["a2", "early"]]
    lines = make("figure_3", [other, runs / "b"], tmp_path)
    assert not rows(lines, "no LN")
    assert [line for line in lines if line.startswith("Not shown")]


def test_figure_3_draws_tasks_by_raw_norm(runs):
    """Raw norms 3, 16, 13: the order is b, c, a."""
    figure = heatmaps([runs / "b"], early_only=True)[2]
    raw, popart = figure.axes[:2]
    assert raw.get_title() == "no LN, raw\nearly, 0.0001 M steps"
    assert figure.get_suptitle() == "critic Grams, MT10, V2 rewards, n = 1 each: +PopArt, seed 1"
    assert [label.get_text() for label in raw.get_yticklabels()] == ["b", "c", "a"]
    assert not popart.get_yticklabels()
    expected = [[1, 4 / 13, 0], [4 / 13, 1, 3 / 13], [0, 3 / 13, 1]]
    for axis, norms in ((raw, [1, 13 / 16, 3 / 16]), (popart, [4 / 13, 1, 3 / 13])):
        cosines, scale = [image.get_array() for image in axis.images]
        assert cosines.mask.diagonal().all()
        np.testing.assert_allclose(cosines.filled(1), expected)
        np.testing.assert_allclose(scale.diagonal(), np.log10(norms))
    r.plt.close(figure)


def test_figure_3_without_popart_shows_raw_gradients_only(tmp_path):
    path = write_run(tmp_path / "vanilla", "vanilla_mtppo", 1, {0: 0}, tasks=ABC)
    write_dumps(path, (SKEWED[0], None))
    lines = make("figure_3", [path], tmp_path)
    expected = "raw | Vanilla MT-PPO | vanilla | initialisation | 0 M | 0.179 | 4 | 4.33"
    assert row(lines, "no LN") == expected
    (absent,) = [line for line in lines if line.startswith("Not shown")]
    assert "columns with LN-c" in absent
    train = "python ablations/ln_popart.py --benchmark MT10 --keep-checkpoints-every 10"
    assert f"{train} --run-dir runs/NAME, then python paper/dump_gradients.py runs/NAME" in absent


def test_figure_d3(runs, tmp_path):
    """Top-1 under the mean: 13 / 20, 4 / 7, sqrt 3 / (1 + sqrt 2 + sqrt 3).

    Under FairGrad: 1 / 3 where orthogonal.
    """
    lines = make("figure_d3", [runs], tmp_path)
    found = {method: numbers for method, *numbers in rows(lines, "MT10, V2, 0.0003 M steps")}
    shares = "0.900 → 0.800 → 0.700"
    assert found["+LN-c +PopArt"] == ["2", "0.400 → 0.300 → 0.200", shares]
    assert found["Vanilla MT-PPO"] == ["1", "0.000 → 0.000 → 0.000", shares]
    first, middle, last = [x for x in rows(lines, "+PopArt +FG-c") if x[0] == "c, MT10"]
    assert first[:4] == ["c, MT10", "0.0001 M", "0.179", "0.650"]
    assert middle == ["c, MT10", "0.0002 M", "0.000", "0.571", "0.333"]
    assert last[:4] == ["c, MT10", "0.0003 M", "0.700", "0.418"]
    for (gradients, _), found in ((SKEWED, first), (CLOSE, last)):
        G = np.array(gradients) @ np.transpose(gradients)
        norms = np.sqrt(np.diag(G))
        mass = norms * fsolve(lambda w, G=G: w * (G @ w) - 1, 1 / norms, xtol=1e-12)
        assert found[4] == f"{mass.max() / mass.sum():.3f}"


def test_figure_d3_draws_each_cell_in_its_style(runs):
    figure = import_module("figure_d3_ln_fairgrad").figure_d3(r.load_runs([runs]))[2]
    drawn = [line for axis in figure.axes for line in axis.lines]
    lines = {line.get_label(): line for line in drawn if "n = " in line.get_label()}
    r.plt.close(figure)
    styles = {name: (line.get_color(), line.get_linestyle()) for name, line in lines.items()}
    assert styles == {
        "no LN, mean (n = 1)": ("#000000", "-"),
        "LN-c, mean (n = 2)": ("#0072B2", "-"),
        "no LN, FG-c (n = 1)": ("#000000", "--"),
    }


def test_figure_d4(runs, tmp_path):
    """9 w (G w) of the mean: 1, 1, 1 both; 18, 32, 194, raw 18, 320, 242; 1, 4, 16 both; 3, 5, 6,
    raw 102, 203 and 30300. The ratios of largest to smallest are 1, 10.8, 16, 2 and, raw, 1, 17.8,
    16, 297."""
    lines = make("figure_d4", [runs], tmp_path)
    name, dumps, raw, popart, *errors, fallbacks = cells(lines, "+PopArt +FG-c")
    assert (name, dumps, fallbacks) == ("c, MT10", "4, 0 M to 0.0003 M", "0")
    assert (raw, popart) == ("16.9", "6.39")
    assert len(errors) == 3
    assert all(float(error) < 1e-12 for error in errors)
    bars = {line.count("|") for line in lines if line.startswith("| ")}
    assert bars == {10}  # none inside a cell

    figure = import_module("figure_d4_contributions").figure_d4(r.load_runs([runs]))[2]
    a, b, c, d = figure.axes
    assert figure.get_suptitle() == "+PopArt +FG-c, MT10, V2, n = 1 (seed 1)"
    steps, contributions = a.lines[0].get_data()
    np.testing.assert_allclose(steps, [0, 1e-4, 2e-4, 3e-4])
    np.testing.assert_allclose(contributions, [1 / 9, 18 / 9, 1 / 9, 102 / 9], rtol=1e-6)
    np.testing.assert_allclose(b.lines[0].get_ydata(), [1 / 9, 18 / 9, 1 / 9, 3 / 9], rtol=1e-6)
    names = [text.get_text() for text in d.get_legend().get_texts()]
    assert names == ["a", "b", "c"]
    for line in [*c.lines, *d.lines]:
        if line.get_marker() == ".":
            np.testing.assert_allclose(line.get_ydata(), 1, atol=1e-12)
    r.plt.close(figure)


def test_figure_d4_with_opposed_and_zero_gradients(tmp_path):
    """9 w (G w) of the mean: 1 - 3 = -2, -3 + 10 = 7 and 0: a cross at 2 / 9.

    FairGrad: two tasks share, the norm is sqrt 2.
    """
    path = write_run(tmp_path / "run", "popart_fairgrad", 1, {0: 0}, tasks=ABC)
    write_dumps(path, ([[1, 0], [-3, 1], [0, 0]], [1, 1, 1]))
    lines = make("figure_d4", [path], tmp_path)
    _, dumps, raw, popart, *errors, fallbacks = cells(lines, "+PopArt +FG-c")
    assert (dumps, raw, popart, fallbacks) == ("1, 0 M to 0 M", "3.5", "3.5", "0")
    assert all(float(error) < 1e-12 for error in errors)
    figure = import_module("figure_d4_contributions").figure_d4(r.load_runs([path]))[2]
    crosses = [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "x"]
    (cross,) = [y for y in crosses if len(y)]
    np.testing.assert_allclose(cross, [2 / 9])
    r.plt.close(figure)


def test_gram_is_summed_in_fp64_over_blocks():
    gradients = np.random.default_rng(0).normal(size=(3, 70_000)).astype(np.float32)
    lists = gradients.tolist()
    expected = [[sum(map(float.__mul__, x, y)) for y in lists] for x in lists]
    np.testing.assert_allclose(r.gram(gradients), expected, rtol=1e-10)


def test_a_compact_run_gives_the_same_figures(runs, tmp_path):
    small = tmp_path / "small"
    paths = [runs / name for name in ("a1", "a2", "b", "c", "d")]
    process = run("compact.py", *paths, "--out", small)
    assert process.returncode == 0, process.stderr
    names = ["figure_2", "figure_d2", "figure_3", "figure_d1", "figure_d3", "figure_d4", "table_2"]
    for name in names:
        assert item(name, [small])[1] == item(name, [runs])[1]
    a2 = small / "a2"
    assert sorted(x.relative_to(a2).as_posix() for x in a2.rglob("*.*")) == [
        "args.json",
        "evals.csv",
        "gradients/collect_00000.npz",
        "gradients/collect_00001.npz",
        "gradients/collect_00002.npz",
        "scalars.csv",
    ]
    written = list(csv.DictReader(open(a2 / "scalars.csv")))
    assert {"step": "200", "tag": "gradients/critic_combined_norm", "value": "1.6"} in written
    assert len(written) == 4 * len(scalars(*4 * [[0]], (1, 1, 1)))
    with np.load(a2 / "gradients/collect_00002.npz", allow_pickle=False) as dump:
        scalar = {"tasks", "collect", "global_step", "popart_mu", "popart_sigma"}
        sides = {"actor_gram", "actor_weights", "critic_gram", "critic_weights"}
        assert set(dump) == scalar | sides
        np.testing.assert_array_equal(dump["critic_gram"], [[1, 1, 1], [1, 2, 2], [1, 2, 3]])
        # (0, 1, 2, 3) with itself, (4, 5, 6, 7) and (8, 9, 10, 11)
        np.testing.assert_array_equal(dump["actor_gram"][0], [14, 38, 62])
        assert dump["actor_gram"].dtype == np.float64
        assert dump["tasks"].tolist() == ABC


def test_compact_leaves_out_paths_and_keeps_what_made_the_run(tmp_path):
    made = {"commit": "abc", "edits": "a diff", "packages": {"torch": "2"}}
    paths = {"run_dir": "/somewhere", "resume": "/else"}
    scalars = {"losses/value": {100: 1.0}}
    path = write_run(tmp_path / "run", "ln", 1, {0: 0}, scalars, **paths, **made)
    before = json.loads((path / "args.json").read_text())
    assert run("compact.py", path, "--out", tmp_path / "small").returncode == 0
    after = json.loads((tmp_path / "small/run/args.json").read_text())
    assert after == before | {"run_dir": None, "resume": None}


def test_a_compact_copy_that_was_continued(tmp_path):
    """Its events begin where scalars.csv ends: both are read, and of a step in both the events."""
    scalars = {"losses/value": {200: 3.0, 300: 4.0}}
    path = write_run(tmp_path / "run", "ln", 1, {0: 0}, scalars)
    copied = "step,tag,value\n100,losses/value,1\n200,losses/value,2\n100,only/copied,5\n"
    (path / "scalars.csv").write_text(copied)
    found = {tag: (*map(list, series),) for tag, series in r.scalars(path).items()}
    assert found["losses/value"] == ([100, 200, 300], [1, 3, 4])
    assert found["only/copied"] == ([100], [5])


def test_compact_writes_over_no_run(tmp_path, monkeypatch, capsys):
    path = write_run(tmp_path / "x/same", "ln", 1, {0: 0}, {"losses/value": {100: 1.0}})
    twin = write_run(tmp_path / "y/same", "ln", 2, {0: 0}, {"losses/value": {100: 1.0}})
    other = tmp_path / "other"
    for arguments, message in [
        ([path, "--out", path.parent], f"{path}: would be written over a run"),
        ([path, twin, "--out", other], f"{twin}: another of the runs has this name"),
        (["--out", other], "no runs given; expected run directories: python paper/compact.py"),
        ([path, "--out", other, "--actor"], f"{path}: --actor wants a whole checkpoint.pt"),
    ]:
        monkeypatch.setattr("sys.argv", ["paper/compact.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            import_module("compact").main()
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.count("\n") == 1
        assert error.startswith(f"compact.py: error: {message}")


def test_missing_scalars_and_dumps(tmp_path):
    bare = write_run(tmp_path / "bare", "ln", 1, {0: 0, 300: 0.5}, tasks=ABC)
    lack = "bare: neither TensorBoard events nor scalars.csv; .*: python ablations/ln.py$"
    with pytest.raises(r.Missing, match=lack):
        make("figure_2", [bare], tmp_path)
    logged = {"losses/value": {100: 1.0}}
    some = write_run(tmp_path / "some", "ln", 2, {0: 0, 300: 0.5}, logged, ABC)
    lack = "some: nothing logged as gradients/critic_log10_norm_spread, .* --run-dir .*some$"
    with pytest.raises(r.Missing, match=lack):
        make("figure_2", [some], tmp_path)
    lack = "no gradient dumps for the contributions, .* --keep-checkpoints-every 10 .*"
    with pytest.raises(r.Missing, match=lack):
        make("figure_d4", [bare], tmp_path)
    cut = write_dumps(write_run(tmp_path / "cut", "popart", 1, {0: 0}, tasks=ABC), SKEWED)
    file = cut / "gradients/collect_00000.npz"
    file.write_bytes(file.read_bytes()[:500])
    lack = "00000.npz: no gradient dump as dump_gradients.py writes it .*; delete it$"
    with pytest.raises(r.Missing, match=lack):
        make("figure_d4", [cut], tmp_path)


def test_overview(tmp_path):
    """Row sums of G with equal weights: 1, 4, 16 and 18, 32, 194 of vanilla's dumps and 3, 5, 6 of
    TOPPO's; those at step 200 are later than the evaluation."""
    success = {"vanilla_mtppo": [0.2, 0, 0.5], "toppo_mt50": [1, 0.6, 0.4]}
    for script, rates in success.items():
        write_run(tmp_path / script, script, 1, {0: 0, 150: rates}, None, ABC)
    write_dumps(tmp_path / "vanilla_mtppo", ORTHOGONAL, SKEWED, CLOSE)
    write_dumps(tmp_path / "toppo_mt50", CLOSE, CLOSE, SKEWED)
    title, lines, figure = import_module("overview").overview(r.load_runs([tmp_path]))
    assert row(lines, "a-v3") == "6.1 | 21.4 | 20.0 | 100.0"
    assert row(lines, "b-v3") == "16.1 | 35.7 | 0.0 | 60.0"
    assert row(lines, "c-v3") == "77.8 | 42.9 | 50.0 | 40.0"
    by_success = [line.split("|")[1].strip() for line in lines[-4:-1]]  # of both together
    assert by_success == ["a-v3", "c-v3", "b-v3"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "c", "b"]
    bars = [bar for drawn in figure.axes[1].containers for bar in drawn]
    np.testing.assert_allclose([bar.get_width() for bar in bars], [20, 50, 0, 100, 40, 60])
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    np.testing.assert_allclose(middles, [0.2, -0.8, -1.8, -0.2, -1.2, -2.2])
    r.plt.close(figure)
    with pytest.raises(r.Missing, match="no run of vanilla_mtppo.py"):
        import_module("overview").overview(r.load_runs([tmp_path / "toppo_mt50"]))


# How dumps are made.

SMALL = {
    "tasks": ("reach-v3", "push-v3", "door-open-v3"),
    "num_steps": 500,
    "update_epochs": 2,
    "num_minibatches": 2,
    "hidden_sizes": (32, 32),
    "total_timesteps": 3000,
    "eval_episodes": 1,
    "eval_interval": 3000,
    "keep_checkpoints_every": 1,
    "torch_threads": 1,
    "num_workers": 1,
    "cuda": False,
}


def train(script, run_dir):
    """A run of two collects. Returns what it followed in the first minibatch of each.

    Of both sides it is the tasks' gradients, "actor" and "critic", and the combined gradient before
    the clip, "actor_d" and "critic_d".
    """
    followed = []

    def update(*args):
        followed.append({})
        return original["update"](*args)

    def per_task_gradients(loss, *args):
        gradients, metrics = original["per_task_gradients"](loss, *args)
        side = "actor" if loss is script.policy_loss else "critic"
        followed[-1].setdefault(side, gradients.shared.numpy().copy())
        return gradients, metrics

    def clip_grad_norm_(parameters, max_norm):
        side = "actor" if parameters[0] is agents[-1].actor[0].weight else "critic"
        shared = list(getattr(agents[-1], side).parameters())
        d = np.concatenate([p.grad.flatten().numpy() for p in shared])
        followed[-1].setdefault(f"{side}_d", d)
        return original["clip_grad_norm_"](parameters, max_norm)

    def agent(*args):
        agents.append(original["Agent"](*args))
        return agents[-1]

    agents = []
    patches = {
        "update": update,
        "per_task_gradients": per_task_gradients,
        "clip_grad_norm_": clip_grad_norm_,
        "Agent": agent,
    }
    original = {name: getattr(script, name) for name in patches}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, function in patches.items():
            monkeypatch.setattr(script, name, function)
        script.main(script.Args(**SMALL, run_dir=str(run_dir)), None)
    return followed


@pytest.fixture(scope="module")
def toppo(tmp_path_factory):
    """A run of toppo_mt50.py and what it followed."""
    path = tmp_path_factory.mktemp("dumps") / "toppo"
    return path, train(import_module("toppo_mt50"), path)


def check_dumps(path, followed):
    """The dumps of a run hold what the run itself followed: the gradients to the bit."""
    for collect, expected in enumerate(followed):
        with np.load(path / f"gradients/collect_{collect:05}.npz", allow_pickle=False) as dump:
            assert dump["tasks"].tolist() == list(SMALL["tasks"])
            assert (dump["collect"], dump["global_step"]) == (collect, 1500 * collect)
            for side in ("actor", "critic"):
                J = dump[f"{side}_gradients"]
                w = dump[f"{side}_weights"]
                assert (J.dtype, w.dtype) == (np.float32, np.float64)
                np.testing.assert_array_equal(J, expected[side])
                d = expected[f"{side}_d"]
                np.testing.assert_allclose(w @ J, d, atol=1e-6 * np.abs(d).max())


def test_dumps_are_what_the_run_followed(toppo):
    path, followed = toppo
    import_module("dump_gradients").dump_run(path, [1])
    files = [path / f"gradients/collect_{collect:05}.npz" for collect in range(3)]
    assert [file.exists() for file in files] == [False, True, False]
    written = files[1].stat().st_mtime_ns

    process = run("dump_gradients.py", path)
    assert process.returncode == 0, process.stderr
    assert files[1].stat().st_mtime_ns == written
    lines = process.stdout.splitlines()
    assert lines[0] == f"{path}/checkpoint_00000.pt: playing the next 1,500 steps"
    assert lines[1].startswith(f"wrote {files[0]}, ")
    assert lines[2] == f"{files[1]} is there already"
    assert files[2].exists()  # of the collect with which the run would go on
    assert len(followed) == 2
    check_dumps(path, followed)

    # PopArt's statistics, with which the returns of this collect are normalised
    for collect in range(2):
        after = torch.load(path / f"checkpoint_{collect + 1:05}.pt", weights_only=True)["agent"]
        with np.load(files[collect], allow_pickle=False) as dump:
            np.testing.assert_array_equal(dump["popart_mu"], after["popart.mu"])
            np.testing.assert_array_equal(dump["popart_sigma"], after["popart.sigma"])
        dump = r.read_dump(files[collect])
        J = followed[collect]["critic"].astype(float)
        np.testing.assert_allclose(dump.critic_gram, J @ J.T)
        assert dump.step == 1500 * collect


@pytest.mark.long
@pytest.mark.parametrize("name", ["vanilla_mtppo", "ln_popart_cagrad_cagrad", "toppo_popart_ema"])
def test_dumps_of_other_scripts(name, tmp_path):
    script = import_module(name)
    followed = train(script, tmp_path / name)
    process = run("dump_gradients.py", tmp_path / name)
    assert process.returncode == 0, process.stderr
    check_dumps(tmp_path / name, followed)
    with np.load(tmp_path / name / "gradients/collect_00001.npz", allow_pickle=False) as dump:
        assert ("popart_sigma" in dump) == ("popart" in name)


def test_what_cannot_be_dumped_is_said(toppo, tmp_path, capsys):
    dump_run = import_module("dump_gradients").dump_run
    path, _ = toppo
    new = write_run(tmp_path / "new", "ln", 1, {0: 0})
    unknown = write_run(tmp_path / "unknown", "mine", 1, {0: 0})
    cut = write_run(tmp_path / "cut", "toppo_mt50", 1, {0: 0})
    content = (path / "checkpoint_00001.pt").read_bytes()
    (cut / "checkpoint_00001.pt").write_bytes(content[:5000])
    for run_dir, collects, message in [
        (tmp_path, (), f"{tmp_path}: no run directory"),
        (unknown, (), f"{unknown}: a run of mine.py, which is none of the repository's scripts"),
        (new, (), f"{new}: no kept checkpoints; a run with --keep-checkpoints-every 10 has them"),
        (path, (7,), f"{path}: no checkpoint_00007.pt; expected --collects among 0 1 2"),
        (cut, (1,), f"{cut}/checkpoint_00001.pt is not a whole checkpoint of toppo_mt50.py"),
    ]:
        with pytest.raises(SystemExit) as end:
            dump_run(run_dir, collects)
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.count("\n") == 1
        assert message in error
    assert not (cut / "gradients").exists()


def test_compact_with_the_actor(toppo, tmp_path):
    """actor.pt has what enjoy.py plays: the mean action is that of the run's agent."""
    path, _ = toppo
    process = run("compact.py", path, "--out", tmp_path, "--actor")
    assert process.returncode == 0, process.stderr
    small = tmp_path / path.name
    kept = torch.load(small / "actor.pt", weights_only=True)
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    assert kept["script"] == "toppo_mt50"
    assert kept["args"] == checkpoint["args"]
    script = import_module("toppo_mt50")
    agent, restored = (script.Agent(3, (32, 32)) for _ in range(2))
    agent.load_state_dict(checkpoint["agent"])
    restored.actor.load_state_dict(kept["actor"])
    obs = torch.randn(5, 42)
    assert torch.equal(agent.actor(obs), restored.actor(obs))
    assert torch.equal(agent.log_std, kept["log_std"])
    assert (small / "actor.pt").stat().st_size < Path(path, "checkpoint.pt").stat().st_size / 3
    args = json.loads((small / "args.json").read_text())
    assert {"commit", "edits", "packages"} <= set(args)
    assert r.read_run(small).success.shape == r.read_run(path).success.shape
