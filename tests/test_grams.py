"""Gradient dumps are what a run followed, and what tables and pictures make of them.

Expected numbers are worked out by hand; FairGrad's weights are scipy's.
"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import toppo_mt50
from scipy.optimize import fsolve
from scripts import ROOT

sys.path.insert(0, str(ROOT / "paper"))
import dump_gradients  # noqa: E402
import grams  # noqa: E402

ABC = ["a-v3", "b-v3", "c-v3"]
J = np.array([[3.0, 0, 0], [0, 4, 0], [3, 4, 12]])  # norms 3, 4, 13; cosines 0, 3/13, 4/13
SIGMA = np.array([1.0, 2, 1])
FAIR = fsolve(lambda w: J @ J.T @ w - 1 / w, 1 / np.linalg.norm(J, axis=1))


def write_run(path, script, dumps, tasks=ABC):
    """A run whose dumps {collect: (gradients [K, D], sigma or None)} are 0.1 M steps apart."""
    (path / "gradients").mkdir(parents=True)
    flags = {"script": script, "seed": 1, "benchmark": "MT10", "reward_version": "v2"}
    flags |= {"commit": None, "total_timesteps": 100, "clip_vloss": True, "tasks": tasks}
    (path / "args.json").write_text(json.dumps(flags))
    rows = "".join(f"0,{task},50,0.0,0.0\n" for task in tasks)
    (path / "evals.csv").write_text("step,task,episodes,success_rate,mean_return\n" + rows)
    for collect, (gradients, sigma) in dumps.items():
        arrays = {"tasks": tasks, "collect": collect, "global_step": 100_000 * collect}
        for side in ("actor", "critic"):
            arrays[f"{side}_gram"] = gradients @ gradients.T
            arrays[f"{side}_weights"] = np.array([1.0, 0, 0])
        if sigma is not None:
            arrays |= {"popart_mu": np.zeros(3), "popart_sigma": sigma}
        np.savez(path / f"gradients/collect_{collect:05}.npz", **arrays)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four runs of the same gradients; ln's tasks are in another order, and one dump has a zero."""
    path = tmp_path_factory.mktemp("runs")
    zero = J * [[1], [1], [0]]
    turned = {collect: (J[::-1], None) for collect in (0, 1, 2)}
    write_run(path / "vanilla", "vanilla_mtppo", {i: (J, None) for i in (0, 1, 2)})
    write_run(path / "ln", "ln", turned, ABC[::-1])
    write_run(path / "ln_popart", "ln_popart", {0: (J, SIGMA), 1: (J, SIGMA), 2: (zero, SIGMA)})
    write_run(path / "toppo", "toppo_mt50", {1: (J, SIGMA), 2: (zero, SIGMA)})
    return path


def call(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    module.main()


# --- grams.py


def test_numbers_of_a_dump(runs):
    dumps = grams.read_dumps([runs]).query("script == 'ln_popart' and millions == 0.1")
    found = grams.numbers(dumps.iloc[0])

    # Raw gradients (3, 0, 0), (0, 16, 0), (3, 4, 12), with their sum 18, 320, 242; PopArt's 18,
    # 32, 194
    lengths = FAIR * np.linalg.norm(J, axis=1)
    expected = {
        "million steps": 0.1,
        "mean cosine": 7 / 39,
        "norms, raw": 16 / 3,
        "norms, PopArt": 13 / 3,
        "largest share, mean": 13 / 20,
        "largest share, FairGrad": lengths.max() / lengths.sum(),
        "contributions, raw": 320 / 18,
        "contributions, PopArt": 194 / 18,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert max(found["Theorem 1: error of 1"], found["raw to PopArt"], found["rescaled"]) < 1e-13
    assert min(found["rescaled, α = 2"], found["rescaled, the mean"]) > 0.01


def test_how_far_the_mean_moves():
    """From (6, 8, 12) / 3 to (9, 8, 12) / 3, if the first gradient is doubled."""
    moved = grams.moved(J @ J.T, grams.mean_weights, np.array([2, 1, 1]))
    assert moved == pytest.approx(3 / np.sqrt(6**2 + 8**2 + 12**2))


def test_page_and_pictures(runs, tmp_path, monkeypatch):
    call(monkeypatch, grams, runs, "--out", tmp_path)
    written = sorted(file.name for file in tmp_path.iterdir())
    pictures = [f"{name}_a_b_c_V2.png" for name in ("grams", "mechanism", "shares")]
    assert written == sorted([*pictures, "grams.md"])
    page = (tmp_path / "grams.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    methods = [row[0].strip("| ") for row in rows[2:]]
    assert methods == 3 * ["Vanilla MT-PPO"] + 3 * ["+LN-c"] + 3 * ["+LN-c +PopArt"] + 2 * ["TOPPO"]
    assert "nan" not in page and "inf" not in page
    assert rows[2][5:7] == ["–", "0.65"]  # no PopArt


def test_grams_have_their_tasks_in_one_order(runs, tmp_path):
    dumps = grams.read_dumps([runs / "vanilla", runs / "ln"])
    grams.draw_grams(dumps, tmp_path / "picture.png")
    panels = grams.plt.gcf().axes[:4]
    assert [axis.get_title() for axis in panels] == [
        "no LN, raw, 0.1 M",
        "LN-c, raw, 0.1 M",
        "no LN, raw, 0.2 M",
        "LN-c, raw, 0.2 M",
    ]
    expected = np.array([[1, 4, 3], [4, 1, 0], [3, 0, 1]]) / 13  # c, b, a
    for axis in panels:
        shown = axis.images[0].get_array()
        off = ~np.eye(3, dtype=bool)
        np.testing.assert_allclose(shown[off].data, expected[off])
    grams.plt.close("all")


def test_without_dumps_it_says_how_to_make_some(runs, tmp_path, monkeypatch):
    bare = shutil.copytree(runs / "ln", tmp_path / "bare", ignore=lambda *_: ["gradients"])
    with pytest.raises(SystemExit, match="no gradient dumps; python paper/dump_gradients.py"):
        call(monkeypatch, grams, bare, "--out", tmp_path)


def test_mechanism_of_one_minibatch(runs, tmp_path):
    grams.draw_mechanism(grams.read_dumps([runs]), tmp_path / "picture.png")
    mean, fair = grams.plt.gcf().axes
    assert [label.get_text() for label in mean.get_yticklabels()] == ["a", "b", "c"]
    for axis, w in ((mean, np.ones(3)), (fair, FAIR)):
        lengths = w * [3, 4, 13]
        shown = [bar.get_width() for bar in axis.patches]
        np.testing.assert_allclose(shown, 100 * lengths / lengths.sum())
    grams.plt.close("all")


# --- dump_gradients.py


@pytest.fixture(scope="module")
def toppo(tmp_path_factory):
    """A run of two collects, and what set_gradients had in the first minibatch of each."""
    path = tmp_path_factory.mktemp("runs") / "toppo"
    followed = []
    update, set_gradients = toppo_mt50.update, toppo_mt50.set_gradients

    def recorded_update(*args):
        followed.append([])
        return update(*args)

    def recorded_set_gradients(net, task_params, J, task_gradients, weights):
        followed[-1].append((J.double().numpy(), weights))
        return set_gradients(net, task_params, J, task_gradients, weights)

    args = toppo_mt50.Args(
        tasks=("reach-v3", "push-v3"),
        num_steps=500,
        update_epochs=1,
        num_minibatches=2,
        hidden_sizes=(16,),
        total_timesteps=2000,
        eval_episodes=1,
        keep_checkpoints_every=1,
        num_workers=1,
        cuda=False,
        run_dir=str(path),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toppo_mt50, "update", recorded_update)
        patch.setattr(toppo_mt50, "set_gradients", recorded_set_gradients)
        toppo_mt50.main(args)
    return path, followed


def test_dumps_are_what_the_run_followed(toppo, capsys):
    path, followed = toppo
    dump_gradients.dump_run(path)
    files = sorted((path / "gradients").iterdir())
    assert [file.name for file in files] == [f"collect_0000{i}.npz" for i in range(3)]

    for collect in (0, 1):
        dump = np.load(files[collect])
        assert dump["tasks"].tolist() == ["reach-v3", "push-v3"]
        assert (dump["collect"], dump["global_step"]) == (collect, 1000 * collect)
        for side, (gradients, weights) in zip(("critic", "actor"), followed[collect]):
            np.testing.assert_allclose(dump[f"{side}_gram"], gradients @ gradients.T)
            np.testing.assert_array_equal(dump[f"{side}_weights"], weights)

        # PopArt's statistics, with which the returns of this collect are normalised
        after = torch.load(path / f"checkpoint_0000{collect + 1}.pt", weights_only=True)["agent"]
        np.testing.assert_array_equal(dump["popart_mu"], after["popart.mu"])
        np.testing.assert_array_equal(dump["popart_sigma"], after["popart.sigma"])

    dump_gradients.dump_run(path)
    assert capsys.readouterr().out.count("is there already") == 3


def test_what_cannot_be_dumped_is_said(toppo, runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/args.json").write_text('{"script": "mine"}')
    damaged = shutil.copytree(toppo[0], tmp_path / "damaged", ignore=lambda *_: ["gradients"])
    (damaged / "checkpoint_00000.pt").write_bytes(b"no checkpoint")
    for run, message in [
        (tmp_path, "is no run directory"),
        (tmp_path / "mine", "is a run of mine.py, which is none of the repository's scripts"),
        (runs / "ln", "has no kept checkpoints"),
        (damaged, "checkpoint_00000.pt is damaged"),
    ]:
        with pytest.raises(SystemExit, match=f"error: {run}.*{message}"):
            dump_gradients.dump_run(run)
