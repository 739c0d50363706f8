"""paper/tables.py, paper/curves.py and tools/compact.py on small made-up runs."""

import json
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import trim_mean
from scripts import ROOT
from torch.utils.tensorboard import SummaryWriter

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "paper")]
import compact  # noqa: E402
import curves  # noqa: E402
import tables  # noqa: E402

FLAGS = {"learning_rate": 3e-4, "adam_eps": 1e-5, "clip_vloss": True, "total_timesteps": 6_000_000}


def make_run(folder, script, success, benchmark="MT3", reward="v2", seed=1, **flags):
    """Writes a run. success: {million steps: the success rates of the tasks a, b, ...}."""
    folder.mkdir(parents=True)
    names = {"script": script, "commit": "0123456789", "seed": seed, "benchmark": benchmark}
    args = {**names, "reward_version": reward, **FLAGS, **flags}
    (folder / "args.json").write_text(json.dumps(args))
    rows = [
        (round(millions * 1e6), f"{chr(97 + k)}-v3", 25, rate, 10.0)
        for millions, rates in success.items()
        for k, rate in enumerate(rates)
    ]
    columns = ["step", "task", "episodes", "success_rate", "mean_return"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "evals.csv", index=False)
    return folder


def call(program, monkeypatch, *words):
    """Runs a program with these arguments."""
    monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, words)])
    program.main()


def section(runs, title, **options):
    """The only table whose title begins so."""
    (table,) = [x for t, x in tables.sections(tables.load(runs), **options) if t.startswith(title)]
    return table


# --- Numbers


def test_iqm_is_the_mean_of_the_middle_half(tmp_path):
    rates = (0.0, 0.1, 0.2, 0.4, 0.6, 0.7, 0.9, 1.0)
    make_run(tmp_path / "a", "ln", {1: rates}, "MT8")
    expected = 100 * np.mean([0.2, 0.4, 0.6, 0.7])
    assert expected == pytest.approx(100 * trim_mean(rates, 0.25))
    assert list(section([tmp_path], "Tables 2").IQM) == [f"{expected:.1f}"]


def test_success_of_one_two_and_three_seeds(tmp_path):
    for seed, rates in enumerate([(0.2, 0.4, 0.9), (0.6, 0.0, 0.9), (1.0, 1.0, 1.0)]):
        make_run(tmp_path / f"1/v{seed}", "vanilla_mtppo", {1: rates}, seed=seed)
        if seed < 2:
            make_run(tmp_path / f"1/t{seed}", "toppo_mt50", {1: rates}, seed=seed)
    make_run(tmp_path / "1/ln", "ln", {1: (0.2, 0.4, 0.9)})
    table = section([tmp_path], "Tables 2")
    assert list(table.index) == ["Vanilla MT-PPO", "+LN-c", "TOPPO"]  # the ladder's order
    assert list(table.n) == [3, 1, 2]
    std = np.std([50, 50, 100], ddof=1)
    assert list(table["mean"]) == [f"66.7 ± {std:.1f}", "50.0", "50.0, 50.0"]

    # Each seed's own worst task: a in the first, b in the second
    assert table["worst 1"]["TOPPO"] == "20.0, 0.0"


def test_columns_of_zeros_are_left_out(tmp_path):
    make_run(tmp_path / "a", "ln", {1: (0, 0, 0, 0.4)}, "MT4")
    make_run(tmp_path / "b", "popart", {1: (0, 0, 0, 0.8)}, "MT4")
    assert list(section([tmp_path], "Tables 2")) == ["n", "mean"]


def test_tasks_are_worst_first(tmp_path):
    make_run(tmp_path / "a", "ln", {1: (0.5, 0.1, 0.9)})
    make_run(tmp_path / "b", "popart", {1: (0.5, 0.2, 1)})
    table = section([tmp_path], "Tables D.5")
    assert list(table.index) == ["b-v3", "a-v3", "c-v3"]
    assert table.loc["b-v3"].to_dict() == {"+LN-c": "10.0", "+PopArt": "20.0"}


def test_full_runs_have_their_best_evaluations(tmp_path):
    """Three tasks: 6 M steps are all of the paper's 2 M a task."""
    for seed, peak in enumerate([2, 4, 4]):
        success = {m: [0.9 if m == peak else 0.6 if m == 6 else 0.1] * 3 for m in (0, 2, 4, 6)}
        make_run(tmp_path / f"{seed}", "toppo_mt50", success, seed=seed)
    row = section([tmp_path], "Tables D.10").iloc[0]
    assert row["best"] == "90.0 ± 0.0"
    assert row["peak"] == f"{(10 + 90 + 90) / 3:.1f}"
    assert row["final"] == row["late"] == "60.0 ± 0.0"  # the last tenth is one evaluation
    assert row["step of the best, M"] == "4.0 [3.0, 4.0], 2.0 to 4.0"


# --- The paper's numbers


def test_the_papers_numbers_stand_beside_ours(tmp_path):
    for name, script in {"a": "toppo_mt50", "b": "ln"}.items():
        success = {m: [0.2] * 50 for m in (1, 3, 100)}
        make_run(tmp_path / name, script, success, "MT50")
    for millions, papers in {1: "15.1", 3: "≈ 32.4", 100: "90.9"}.items():  # 32.4: 24.9 to 39.9
        title = f"Tables 2, 3, D.1, D.2 and D.4: MT50, V2, {millions} M steps"
        table = section([tmp_path], title, millions=(1, 3, 100))
        assert list(table["the paper's mean"]) == ["–", papers]
        assert list(table).index("the paper's mean") == list(table).index("mean") + 1
    assert table["the paper's worst 5"]["TOPPO"] == "24.1"
    best = section([tmp_path], "Tables D.10")
    assert best["the paper's"]["TOPPO"] == "84.0 [51.0, 93.5], 46.0 to 96.0"


def test_published_baselines_and_when_ours_are_there(tmp_path):
    success = {m: [rate] * 50 for m, rate in {1: 0.3, 2: 0.5, 3: 0.7}.items()}
    make_run(tmp_path / "v2", "toppo_mt50", success, "MT50")
    make_run(tmp_path / "v1", "toppo_mt50", success, "MT50", "v1")
    table = section([tmp_path], "Published baselines: MT50, V2")
    assert list(table.index) == list(table.index[table["mean"].astype(float).argsort()])
    assert (table["TOPPO, M"]["SAC-MT"], table["TOPPO, M"]["ARS"]) == ("2", "3")  # 47.6 and 65.9
    assert (table["TOPPO, M"]["ARS-LN-1024"], table["TOPPO is there, M"]["ARS"]) == ("–", "11.3")
    table = section([tmp_path], "Published baselines: MT50, V1")
    assert (table["IQM"]["MOORE"], table["TOPPO, M"]["MOORE"]) == ("61.2", "3")


def test_published_numbers_have_their_sources():
    table = pd.read_csv(ROOT / "paper/published.csv")
    assert table.drop(columns=["step", "reward"]).notna().all(axis=None)
    ours = table[table.source.str.startswith("arXiv 2605.11473") & ~table.source.str.contains("of")]
    assert set(ours.method[ours.reward == "V2"]) <= set(tables.ORDER)


# --- Which runs belong together


def test_runs_of_two_algorithms_are_not_pooled(tmp_path):
    a = make_run(tmp_path / "a", "ln", {1: (0.5,) * 3})
    b = make_run(tmp_path / "b", "ln", {1: (0.5,) * 3}, bootstrap_truncation=False)
    with pytest.raises(SystemExit) as stop:
        tables.load([tmp_path])
    message = str(stop.value)
    assert "\n" not in message
    for part in ("+LN-c", "bootstrap_truncation", "True", "False", str(a), str(b), "variant"):
        assert part in message

    # A variant has a name of its own
    args = json.loads((b / "args.json").read_text())
    (b / "args.json").write_text(json.dumps(args | {"variant": "faster"}))
    assert set(tables.load([tmp_path]).method) == {"+LN-c", "+LN-c, faster"}


def test_other_flags_may_differ(tmp_path):
    a = make_run(tmp_path / "a", "ln", {1: (0.5,) * 3})
    args = json.loads((a / "args.json").read_text())
    args.pop("adam_eps")  # an older run
    (a / "args.json").write_text(json.dumps(args))
    make_run(tmp_path / "b", "ln", {1: (0.5,) * 3}, seed=2, total_timesteps=10, num_workers=7)
    assert set(tables.load([tmp_path]).method) == {"+LN-c"}


def test_names_of_methods(tmp_path):
    make_run(tmp_path / "a", "toppo_mt50", {1: (0.5,) * 3}, clip_vloss=False)
    make_run(tmp_path / "b", "toppo_mt50", {1: (0.5,) * 3}, adam_eps=1e-8)
    make_run(tmp_path / "c", "mine", {1: (0.5,) * 3})
    make_run(tmp_path / "d", "ln", {1: (0.5,) * 3})
    found = tables.in_order(tables.load([tmp_path]).method)
    assert found == ["+LN-c", "TOPPO, no value clip", "TOPPO, ε = 1e-8", "mine"]


def test_every_script_has_a_name_and_its_own_flags():
    files = [*ROOT.glob("ablations/*.py"), ROOT / "toppo_mt50.py", ROOT / "vanilla_mtppo.py"]
    assert {file.stem for file in files} == set(tables.METHODS)
    assert len(set(tables.ORDER)) == 16
    for script in tables.METHODS:
        flags = tables.algorithm_flags(script)
        assert flags["hidden_sizes"] == [400, 400, 400]  # as args.json has it
        assert flags["learning_rate"] == 3e-4
        assert not {"seed", "total_timesteps", "num_workers"} & set(flags)
    assert tables.algorithm_flags("toppo_popart_ema")["popart_beta"] == 0.1


def test_lists_of_tasks_are_sets_of_their_own(tmp_path):
    make_run(tmp_path / "a", "ln", {1: (0.5,) * 3}, "MT50")
    make_run(tmp_path / "b", "popart", {1: (0.5,) * 4}, "MT50")
    assert set(tables.load([tmp_path]).tasks) == {"a b c", "a b c d"}


def test_folders_of_runs(tmp_path):
    run = make_run(tmp_path / "far/down/a", "ln", {1: (0.5,) * 3})
    assert len(tables.load([tmp_path, run])) == 3  # found inside, and once
    for paths in ([tmp_path, tmp_path / "none"], []):
        with pytest.raises(SystemExit, match="error: .*(has no run|expected run)"):
            tables.load(paths)


def test_methods_are_compared_where_two_of_them_are(tmp_path):
    make_run(tmp_path / "a", "ln", {1: (0.5,) * 3, 2: (0.5,) * 3, 4: (0.5,) * 3})
    runs = tables.load([tmp_path])
    assert tables.compared_steps(runs, (1, 2, 4)) == [4_000_000]  # its last
    make_run(tmp_path / "b", "popart", {1: (0.5,) * 3, 2: (0.5,) * 3, 6: (0.5,) * 3})
    runs = tables.load([tmp_path])
    assert tables.compared_steps(runs, (1, 4)) == [1_000_000, 6_000_000]  # 6 M: a full run


def test_the_page(tmp_path):
    make_run(tmp_path / "runs/a", "ln", {1: (0.5,) * 3})
    out = tmp_path / "new/tables.md"
    command = [sys.executable, "paper/tables.py", tmp_path / "runs", "--out", out]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert "| +LN-c | 1 | 50.0 | 50.0 | 50.0 |" in out.read_text()


# --- Curves


def log(run, steps, **tags):
    """Logs tags as the scripts do, to TensorBoard."""
    writer = SummaryWriter(run)
    for tag, values in tags.items():
        for step, value in zip(steps, values):
            writer.add_scalar(tag.replace("__", "/"), value, step)
    writer.close()


def test_a_collect_that_was_redone_counts_once(tmp_path):
    (tmp_path / "scalars.csv").write_text(
        "step,tag,value\n10,losses/value,1.0\n20,losses/value,2.0\n"
    )
    log(tmp_path, [20, 30], losses__value=[2.5, 3.0])
    found = curves.scalars(tmp_path)
    assert dict(zip(found.step, found.value)) == {10: 1.0, 20: 2.5, 30: 3.0}


def test_lines_are_means_over_runs_with_the_same_evaluations(tmp_path):
    long = {0: (0.0,) * 3, 1: (0.4,) * 3, 2: (0.6,) * 3}
    make_run(tmp_path / "a", "ln", long)
    make_run(tmp_path / "b", "ln", {m: np.array(x) / 2 for m, x in long.items()}, seed=2)
    make_run(tmp_path / "c", "ln", {0: (0.0,) * 3, 1: (1.0,) * 3}, seed=3)
    _, axis = plt.subplots()
    curves.lines(axis, tables.load([tmp_path]), "success")
    drawn = {tuple(np.round(line.get_ydata(), 6)) for line in axis.lines}
    assert drawn == {(0, 30, 45), (0, 100)}
    assert len({line.get_color() for line in axis.lines}) == 1


def test_methods_of_the_ladder_look_different():
    looks = [curves.style(method) for method in tables.ORDER]
    pairs = {(str(x["linestyle"]), x["marker"]) for x in looks[:6]}  # without colour
    assert len(pairs) == 6
    assert len({(x["color"], str(x["linestyle"]), x["marker"]) for x in looks}) == 16
    assert curves.style("TOPPO, no value clip") == curves.style("TOPPO")


def test_figures(tmp_path, monkeypatch):
    for name, script, flags in [
        ("a", "toppo_mt50", {}),
        ("b", "vanilla_mtppo", {}),
        ("c", "vanilla_mtppo", {"clip_vloss": False}),
    ]:
        run = make_run(tmp_path / name, script, {0: [0.0] * 50, 2: [0.5] * 50}, "MT50", **flags)
        log(run, [1_000_000, 2_000_000], gradients__critic_top1_share=[0.5, 0.4])
    saved = {}
    monkeypatch.setattr(curves, "save", lambda figure, axes, path: saved.update({path.name: axes}))
    call(curves, monkeypatch, tmp_path, "--out", tmp_path / "out")
    kinds = ("curves", "ladder", "per_task", "gradients")
    assert set(saved) == {f"{kind}_MT50_V2.png" for kind in kinds}
    assert len(saved["per_task_MT50_V2.png"]) == 50

    def labels(axis):
        return {line.get_label() for line in axis.lines}

    clipped, unclipped = saved["ladder_MT50_V2.png"]
    papers = {"TOPPO, the paper", "Vanilla MT-PPO, the paper"}
    assert labels(clipped) == {"TOPPO", "Vanilla MT-PPO"} | papers
    assert labels(unclipped) == {"Vanilla MT-PPO"} | papers
    shares = saved["gradients_MT50_V2.png"][
        list(curves.LOGGED).index("gradients/critic_top1_share")
    ]
    assert [list(line.get_ydata()) for line in shares.lines] == 2 * [pytest.approx([0.5, 0.4])]


def test_pictures_are_written(tmp_path, monkeypatch):
    make_run(tmp_path / "a", "mine", {0: (0.0,) * 3, 1: (0.0,) * 3})  # nothing learned, no logs
    call(curves, monkeypatch, tmp_path / "a", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


# --- Compact copies


def make_whole_run(folder):
    run = make_run(folder, "toppo_mt50", {0: (0.0,) * 3, 1: (0.5,) * 3}, run_dir="/a/secret/place")
    log(run, [500_000, 1_000_000], losses__value=[0.1, 1 / 3])
    (run / "args_00002.json").write_text("{}")  # of an earlier start
    (run / "gradients").mkdir()
    np.savez(run / "gradients/collect_00010.npz", critic_gram=np.eye(3))
    agent = {
        "actor.0.weight": torch.ones(2),
        "critic.0.weight": torch.ones(2),
        "log_std": torch.ones(3, 4),
    }
    flags = {"seed": 1, "run_dir": "/a/secret/place"}
    torch.save({"script": "toppo_mt50", "args": flags, "agent": agent}, run / "checkpoint.pt")
    return run


def test_a_compact_copy_reads_like_the_run(tmp_path, monkeypatch):
    run = make_whole_run(tmp_path / "runs/a")
    copy = tmp_path / "results/a"
    call(compact, monkeypatch, run, "--out", copy.parent, "--actor")
    columns = ["step", "task", "success", "method"]
    pd.testing.assert_frame_equal(tables.load([run])[columns], tables.load([copy])[columns])
    logged, again = curves.scalars(run), curves.scalars(copy)
    assert list(again.columns) == ["step", "tag", "value"]
    assert np.allclose(logged.value, again.value, rtol=1e-6)
    for file in copy.glob("args*.json"):
        assert "secret" not in file.read_text()
    assert (copy / "args_00002.json").exists()
    assert not list(copy.glob("events*")) and not (copy / "checkpoint.pt").exists()

    assert (copy / "gradients/collect_00010.npz").exists()

    actor = torch.load(copy / "actor.pt", weights_only=True)
    assert set(actor) == {"script", "args", "actor", "log_std"}
    assert set(actor["actor"]) == {"0.weight"}
    assert actor["args"] == {"seed": 1, "run_dir": None}
