"""Figures of gradients, from scalars and gradient dumps written here; expected numbers are worked out by hand."""

import csv
import json
from importlib import import_module

import numpy as np
import pytest
from scipy.optimize import fsolve
from test_paper import cells, make, r, rows, run, write_run

ABC = ["a-v3", "b-v3", "c-v3"]
# Of a first, a middle and a last dump: gradients of a, b and c, and PopArt's sigma.
SKEWED = [[3, 0, 0], [0, 4, 0], [3, 4, 12]], [1, 2, 1]  # norms 3, 4, 13, raw 3, 16, 13; cosines 0, 3/13, 4/13
ORTHOGONAL = [[1, 0, 0], [0, 2, 0], [0, 0, 4]], [1, 1, 1]
CLOSE = [[1, 0, 0], [1, 1, 0], [1, 1, 1]], [1, 1, 10]  # cosines 1 / sqrt 2, 1 / sqrt 3, 2 / sqrt 6; raw norms 1, 1.41, 173


def write_dumps(path, *dumps):
    """Gradient dumps of collects 0, 1.. at steps 0, 100.. from (critic gradients [K, D], sigma or None)."""
    (path / "gradients").mkdir()
    for i, (gradients, sigma) in enumerate(dumps):
        num_tasks = len(gradients)
        popart = {} if sigma is None else {"popart_mu": np.zeros(num_tasks), "popart_sigma": np.array(sigma, float)}
        np.savez_compressed(
            path / f"gradients/collect_{i:05}.npz", tasks=np.array(ABC[:num_tasks]), collect=i, global_step=100 * i,
            actor_gradients=np.arange(4.0 * num_tasks, dtype=np.float32).reshape(num_tasks, 4), **popart,
            critic_gradients=np.array(gradients, np.float32), success_ema=np.zeros(num_tasks),
            actor_weights=np.full(num_tasks, 1 / num_tasks), critic_weights=np.full(num_tasks, 1 / num_tasks))  # fmt: skip
    return path


def curve(*values):
    return dict(zip((100, 200, 300, 400), (*values, 1e9)))  # what comes after the last evaluation at 300 does not count


def scalars(critic, actor, ratio, cosine, sigma):
    """{tag: {step: value}} with norms 1, 1, 2 of the actor's and 1, 2, 4 of the critic's gradients."""
    found = {"gradients/critic_log10_norm_spread": curve(*critic), "gradients/actor_log10_norm_spread": curve(*actor),
             "gradients/norm_ratio": curve(*ratio), "gradients/critic_mean_cosine": curve(*cosine),
             "gradients/critic_top1_share": curve(0.9, 0.8, 0.7)}  # fmt: skip
    for k, task in enumerate(ABC):
        found[f"actor_gradient_norm/{task}"] = curve(*3 * [(1, 1, 2)[k]])
        found[f"critic_gradient_norm/{task}"] = curve(*3 * [(1, 2, 4)[k]])
        if sigma:
            found[f"popart_sigma/{task}"] = curve(*3 * [sigma[k]])
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of ln_popart.py and one each of popart.py, popart_fairgrad.py and vanilla_mtppo.py."""
    folder, dumps = tmp_path_factory.mktemp("runs"), (SKEWED, ORTHOGONAL, CLOSE)

    def write(name, script, seed, *values):
        return write_run(folder / name, script, seed, {0: 0, 300: 0.5}, scalars(*values), ABC)

    write("a1", "ln_popart", 1, (1, 2, 3), (0, 1, 0), (0.1, 0.2, 0.4), (0.5, 0.4, 0.3), (1, 2, 0.5))
    write("a2", "ln_popart", 2, (1, 1, 2), (0, 1, 0), (0.3, 0.4, 0.8), (0.3, 0.2, 0.1), (1, 1, 1))
    write_dumps(folder / "a2", ORTHOGONAL, CLOSE)
    write_dumps(write("b", "popart", 1, (2, 2, 2), (0, 0, 0), (5, 6, 7), (0.9, 0.8, 0.7), (1, 1, 1)), *dumps)
    write_dumps(write("c", "popart_fairgrad", 1, (0, 0, 0), (0, 0, 0), (1, 1, 1), (0, 0, 0), (1, 1, 1)), *dumps)
    write("d", "vanilla_mtppo", 1, (2, 2, 2), (1, 1, 1), (3, 3, 3), (0, 0, 0), None)
    return folder


def test_figure_2(runs, tmp_path):
    """ln_popart.py: spreads 10, 100, 1000 and 10, 10, 100; norms times sigma^2: 1, 8, 1 and 1, 2, 4, spreads 8 and 4."""
    lines = make("figure_2", [runs], tmp_path)
    critic, actor = "10 → 55 → 550", "1 → 10 → 1"
    assert cells(lines, "+LN-c +PopArt") == ["2", critic, "6 → 6 → 6", actor, "10 → 5.5 → 550", "0.2 → 0.3 → 0.6"]
    assert cells(lines, "Vanilla MT-PPO") == ["1", "100 → 100 → 100", "–", "10 → 10 → 10", "10 → 10 → 10", "3 → 3 → 3"]
    figure = import_module("figure_2_d2_norm_spread").figure_2(r.load_runs([runs]))[2]
    solid, dotted = ([x for x in figure.axes[0].lines if x.get_color() == r.COLORS["ln_popart"]][i] for i in (0, 1))
    np.testing.assert_allclose(solid.get_data(), [[1e-4, 2e-4, 3e-4], [1, 1.5, 2.5]])  # log10, the mean of two seeds
    np.testing.assert_allclose(dotted.get_ydata(), 3 * [np.log10(np.sqrt(8 * 4))])
    r.plt.close(figure)


def test_figure_d2(runs, tmp_path):
    lines = make("figure_d2", [runs], tmp_path)
    sides = [("actor", "2 → 2 → 2"), ("critic", "4 → 4 → 4"), ("critic × σ²", "6 → 6 → 6")]
    assert rows(lines, "MT10, V2, 0.0003 M steps") == [["+LN-c +PopArt", "2", *side] for side in sides]
    lines = make("figure_d2", [runs / "d"], tmp_path)
    assert rows(lines, "MT10, V2, 0.0003 M steps") == [["Vanilla MT-PPO", "1", *side] for side in sides[:2]]


def test_figures_3_and_d1(runs, tmp_path):
    """Mean cosines: 7 / 39, 0 and (0.707 + 0.577 + 0.816) / 3. The columns with LN-c are of the seed that has dumps, two: beside
    them the columns without show these two steps only."""
    lines = make("figure_d1", [runs / "b"], tmp_path)
    skewed = ["+PopArt", "b", "early", "0 M", "0.179"]
    assert rows(lines, "no LN") == [
        ["raw", *skewed, "13", "5.33"], ["PopArt", *skewed, "4", "4.33"],
        ["raw", "+PopArt", "b", "middle", "0.0001 M", "0.000", "2", "4"],
        ["PopArt", "+PopArt", "b", "middle", "0.0001 M", "0.000", "2", "4"],
        ["raw", "+PopArt", "b", "late", "0.0002 M", "0.700", "1.41", "173"],
        ["PopArt", "+PopArt", "b", "late", "0.0002 M", "0.700", "1.41", "1.73"]]  # fmt: skip
    lines = make("figure_d1", [runs], tmp_path)
    stages = [(label, *stage) for stage in (("early", "0 M"), ("late", "0.0001 M")) for label in ("raw", "PopArt")]
    assert [row[:5] for row in rows(lines, "LN-c")] == [[label, "+LN-c +PopArt", "a2", *stage] for label, *stage in stages]
    assert [row[:5] for row in rows(lines, "no LN")] == [[label, "+PopArt", "b", *stage] for label, *stage in stages]
    assert not any("Not shown" in line for line in lines)
    lines = make("figure_3", [runs], tmp_path)
    assert rows(lines, "no LN") == [["raw", *skewed, "13", "5.33"], ["PopArt", *skewed, "4", "4.33"]]
    assert len(rows(lines, "LN-c")) == 2


def test_figures_3_and_d1_want_equal_steps(tmp_path):
    later = write_dumps(write_run(tmp_path / "later", "ln_popart", 1, {0: 0}, tasks=ABC), ORTHOGONAL, CLOSE)
    (later / "gradients/collect_00000.npz").unlink()
    first = write_dumps(write_run(tmp_path / "first", "popart", 1, {0: 0}, tasks=ABC), ORTHOGONAL)
    with pytest.raises(r.Missing, match="no gradient dumps at equal steps: .*first and .*later"):
        import_module("figure_3_d1_critic_grams").heatmaps("", r.load_runs([later, first]), early_only=False)


def test_figure_3_draws_tasks_by_raw_norm(runs):
    """Raw norms 3, 16, 13: the order is b, c, a."""
    title, _, figure = import_module("figure_3_d1_critic_grams").heatmaps("", r.load_runs([runs / "b"]), early_only=True)
    raw, popart = figure.axes[:2]
    assert raw.get_title() == "no LN, raw\nearly, 0 M steps"
    for axis in raw, popart:
        cosines = axis.images[0].get_array()
        assert cosines.mask.diagonal().all()
        np.testing.assert_allclose(cosines.filled(1), [[1, 4 / 13, 0], [4 / 13, 1, 3 / 13], [0, 3 / 13, 1]])
    np.testing.assert_allclose(raw.images[1].get_array().diagonal(), np.log10([1, 13 / 16, 3 / 16]))
    np.testing.assert_allclose(popart.images[1].get_array().diagonal(), np.log10([4 / 13, 1, 3 / 13]))
    r.plt.close(figure)


def test_figure_3_without_popart_shows_raw_gradients_only(tmp_path):
    vanilla = write_dumps(write_run(tmp_path / "vanilla", "vanilla_mtppo", 1, {0: 0}, tasks=ABC), (SKEWED[0], None))
    lines = make("figure_3", [vanilla], tmp_path)
    assert rows(lines, "no LN") == [["raw", "Vanilla MT-PPO", "vanilla", "only", "0 M", "0.179", "4", "4.33"]]
    (absent,) = [line for line in lines if line.startswith("Not shown")]
    assert "columns with LN-c" in absent and "python ablations/ln_popart.py --benchmark MT10 --dump-gradients-every 10" in absent


def test_figure_d3(runs, tmp_path):
    """Top-1 under the mean: 13 / 20, 4 / 7, sqrt 3 / (1 + sqrt 2 + sqrt 3); under FairGrad: 1 / 3 where orthogonal."""
    lines = make("figure_d3", [runs], tmp_path)
    found = {row[0]: row[1:] for row in rows(lines, "MT10, V2, 0.0003 M steps")}
    assert found["+LN-c +PopArt"] == ["2", "0.400 → 0.300 → 0.200", "0.900 → 0.800 → 0.700"]
    assert found["Vanilla MT-PPO"] == ["1", "0.000 → 0.000 → 0.000", "0.900 → 0.800 → 0.700"]
    (first, middle, last) = [row for row in rows(lines, "+PopArt +FG-c") if row[0] == "c"]
    assert first[:4] == ["c", "0 M", "0.179", "0.650"]
    assert middle == ["c", "0.0001 M", "0.000", "0.571", "0.333"]
    assert last[:4] == ["c", "0.0002 M", "0.700", "0.418"]
    for (gradients, _), row in (SKEWED, first), (CLOSE, last):
        G = np.array(gradients) @ np.transpose(gradients)
        mass = fsolve(lambda w, G=G: w * (G @ w) - 1, 1 / np.sqrt(np.diag(G)), xtol=1e-12) * np.sqrt(np.diag(G))
        assert row[4] == f"{mass.max() / mass.sum():.3f}"


def test_figure_d4(runs, tmp_path):
    """9 w (G w) of the mean: 18, 32, 194, raw 18, 320, 242; 1, 4, 16 both; 3, 5, 6, raw 102, 203, 30300. The ratios of the
    largest to the smallest have the medians 10.8 and, raw, 17.8."""
    lines = make("figure_d4", [runs], tmp_path)
    name, dumps, raw, popart, *errors, fallbacks = cells(lines, "+PopArt +FG-c")
    assert (name, dumps, raw, popart, fallbacks) == ("c", "3, 0 M to 0.0002 M", "17.8", "10.8", "0")
    assert all(float(error) < 1e-12 for error in errors) and len(errors) == 3
    assert all(line.count("|") == 10 for line in lines if line.startswith("| "))  # no | inside a cell
    figure = import_module("figure_d4_contributions").figure_d4(r.load_runs([runs]))[2]
    a, b, c, d = figure.axes
    assert figure.get_suptitle() == "+PopArt +FG-c, MT10, V2, seed 1"
    np.testing.assert_allclose(a.lines[0].get_data(), [[0, 1e-4, 2e-4], [18 / 9, 1 / 9, 102 / 9]], rtol=1e-6)
    np.testing.assert_allclose(b.lines[0].get_ydata(), [18 / 9, 1 / 9, 3 / 9], rtol=1e-6)
    assert all(np.allclose(line.get_ydata(), 1, atol=1e-12) for axis in (c, d) for line in axis.lines if line.get_marker() == ".")
    r.plt.close(figure)


def test_figure_d4_with_opposed_and_zero_gradients(tmp_path):
    """9 w (G w) of the mean: 1 - 3 = -2, -3 + 10 = 7 and 0: a cross at 2 / 9. FairGrad: two tasks share, the norm is sqrt 2."""
    path = write_run(tmp_path / "run", "popart_fairgrad", 1, {0: 0}, tasks=ABC)
    write_dumps(path, ([[1, 0], [-3, 1], [0, 0]], [1, 1, 1]))
    _, dumps, raw, popart, *errors, fallbacks = cells(make("figure_d4", [path], tmp_path), "+PopArt +FG-c")
    assert (dumps, raw, popart, fallbacks) == ("1, 0 M to 0 M", "3.5", "3.5", "0")
    assert all(float(error) < 1e-12 for error in errors)
    figure = import_module("figure_d4_contributions").figure_d4(r.load_runs([path]))[2]
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())]
    np.testing.assert_allclose(cross.get_ydata(), [2 / 9])
    r.plt.close(figure)


def test_gram_is_summed_in_fp64_over_blocks():
    gradients = np.random.default_rng(0).normal(size=(3, 70_000)).astype(np.float32)
    expected = [[sum(map(float.__mul__, x.tolist(), y.tolist())) for y in gradients] for x in gradients]
    np.testing.assert_allclose(r.gram(gradients), expected, rtol=1e-10)


def test_a_compact_run_gives_the_same_figures(runs, tmp_path):
    process = run("compact.py", runs / "a1", runs / "a2", runs / "b", runs / "c", runs / "d", "--out", tmp_path / "small")
    assert process.returncode == 0, process.stderr
    assert not any((tmp_path / "small").rglob("events*"))
    for name in "figure_2", "figure_d2", "figure_3", "figure_d1", "figure_d3", "figure_d4", "table_2":
        assert make(name, [tmp_path / "small"], tmp_path / "out") == make(name, [runs], tmp_path / "out")
    a2 = tmp_path / "small/a2"
    assert sorted(x.relative_to(a2).as_posix() for x in a2.rglob("*.*")) == [
        "args.json", "evals.csv", "gradients/collect_00000.npz", "gradients/collect_00001.npz", "scalars.csv"]  # fmt: skip
    written = list(csv.DictReader(open(a2 / "scalars.csv")))
    assert {"step": "200", "tag": "gradients/norm_ratio", "value": "0.4"} in written
    assert len(written) == 4 * len(scalars(*4 * [[0]], (1, 1, 1)))
    with np.load(a2 / "gradients/collect_00001.npz", allow_pickle=False) as dump:
        assert sorted(dump) == ["actor_gram", "actor_weights", "collect", "critic_gram", "critic_weights", "global_step",
                                "popart_mu", "popart_sigma", "success_ema", "tasks"]  # fmt: skip
        np.testing.assert_array_equal(dump["critic_gram"], [[1, 1, 1], [1, 2, 2], [1, 2, 3]])
        np.testing.assert_array_equal(dump["actor_gram"][0], [14, 38, 62])  # (0, 1, 2, 3) with (4, 5, 6, 7) and (8, 9, 10, 11)
        assert dump["actor_gram"].dtype == np.float64 and dump["tasks"].tolist() == ABC


def test_compact_leaves_out_paths_and_writes_over_no_run(tmp_path):
    path = write_run(tmp_path / "x/same", "ln", 1, {0: 0}, {"losses/value": {100: 1.0}}, run_dir="/somewhere", resume="/else")
    assert run("compact.py", path, "--out", tmp_path / "small").returncode == 0
    args = json.loads((tmp_path / "small/same/args.json").read_text())
    assert (args["run_dir"], args["resume"], args["script"], args["seed"]) == (None, None, "ln", 1)
    twin = write_run(tmp_path / "y/same", "ln", 2, {0: 0}, {"losses/value": {100: 1.0}})
    for arguments, message in [
        ([path, "--out", path.parent], f"{path}: would be written over a run"),
        ([path, twin, "--out", tmp_path / "other"], f"{twin}: another of the runs has this name"),
        (["--out", tmp_path / "other"], "no runs given; expected run directories: python paper/compact.py"),
    ]:
        process = run("compact.py", *arguments)
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert process.stderr.startswith(f"compact.py: error: {message}")


def test_missing_scalars_and_dumps(tmp_path):
    bare = write_run(tmp_path / "bare", "ln", 1, {0: 0, 300: 0.5}, tasks=ABC)
    with pytest.raises(r.Missing, match="bare: neither TensorBoard events nor scalars.csv; .*: python ablations/ln.py$"):
        make("figure_2", [bare], tmp_path)
    some = write_run(tmp_path / "some", "ln", 2, {0: 0, 300: 0.5}, {"gradients/norm_ratio": {100: 1.0}}, tasks=ABC)
    with pytest.raises(r.Missing, match="some: nothing logged as gradients/critic_log10_norm_spread, .* --resume "):
        make("figure_2", [some], tmp_path)
    with pytest.raises(r.Missing, match="no gradient dumps for the contributions, .* --dump-gradients-every 10$"):
        make("figure_d4", [bare], tmp_path)
    cut = write_dumps(write_run(tmp_path / "cut", "popart", 1, {0: 0}, tasks=ABC), SKEWED) / "gradients/collect_00000.npz"
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(r.Missing, match="00000.npz: no gradient dump as --dump-gradients-every N writes it .*; delete it$"):
        make("figure_d4", [tmp_path / "cut"], tmp_path)


def test_overview(tmp_path):
    """Row sums of G with equal weights: 1, 4, 16 and 18, 32, 194 of vanilla's dumps, 3, 5, 6 of TOPPO's; that at 200 is late."""
    success = {"vanilla_mtppo": [0.2, 0, 0.5], "toppo_mt50": [1, 0.6, 0.4]}
    for script, rates in success.items():
        write_run(tmp_path / script, script, 1, {0: 0, 150: rates}, None, ABC)
    write_dumps(tmp_path / "vanilla_mtppo", ORTHOGONAL, SKEWED, CLOSE)
    write_dumps(tmp_path / "toppo_mt50", CLOSE, CLOSE, SKEWED)
    title, lines, figure = import_module("overview").overview(r.load_runs([tmp_path]))
    assert cells(lines, "a-v3") == ["6.1", "21.4", "20.0", "100.0"]
    assert cells(lines, "b-v3") == ["16.1", "35.7", "0.0", "60.0"]
    assert cells(lines, "c-v3") == ["77.8", "42.9", "50.0", "40.0"]
    assert [line.split("|")[1].strip() for line in lines[-4:-1]] == ["a-v3", "c-v3", "b-v3"]  # by success of both together
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "c", "b"]
    widths = [bar.get_width() for bars in figure.axes[1].containers for bar in bars]
    np.testing.assert_allclose(widths, [20, 50, 0, 100, 40, 60])
    r.plt.close(figure)
    with pytest.raises(r.Missing, match="no run of vanilla_mtppo.py"):
        import_module("overview").overview(r.load_runs([tmp_path / "toppo_mt50"]))
