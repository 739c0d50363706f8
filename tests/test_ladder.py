"""The scripts are one text: each is its parent plus one change, the same wherever it is made."""

import ast
import importlib.util
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("ladder", ROOT / "tools/ladder.py")
ladder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ladder)

SCRIPTS = ["vanilla_mtppo", *(child for _, child in ladder.EDGES)]
LAYER_NORM = {"mlp", "Agent"}  # what each change touches
POPART = {"PopArt", "Agent", "value_loss", "update_minibatch", "update"}
FAIRGRAD = {"from fairgrad_solver import solve_fairgrad", "update_minibatch"}
ENVPOOL = {"from importlib.util import find_spec", "Args", "make_pool", "play_pools"}
ENVPOOL |= {"worker", "collect_rollout"}
MODULES = [  # that are added to several scripts
    (LAYER_NORM, "vanilla_mtppo ln, popart ln_popart, fairgrad ln_fairgrad"),
    (POPART, "vanilla_mtppo popart, ln ln_popart, fairgrad popart_fairgrad"),
    (FAIRGRAD, "vanilla_mtppo fairgrad, ln ln_fairgrad, popart popart_fairgrad"),
    (FAIRGRAD, "vanilla_mtppo fairgrad, ln_popart ln_popart_fairgrad"),
    (ENVPOOL, "vanilla_mtppo vanilla_envpool, toppo_mt50 toppo_envpool"),
]
CAGRAD = {"from scipy.optimize import minimize", "Args", "cagrad_weights", "update_minibatch"}
VARIANTS = {
    "ln_popart toppo_mt50": {*FAIRGRAD, "pcgrad_weights"},
    "ln_popart ln_popart_pcgrad_pcgrad": {"pcgrad_weights", "update_minibatch"},
    "ln_popart_pcgrad_pcgrad toppo_mt50": FAIRGRAD,  # their pcgrad_weights are the same
    "ln_popart ln_popart_cagrad_cagrad": CAGRAD,
    "ln_popart symmetric_ln_popart": {"Agent"},
    "ln_popart_fairgrad ln_popart_fairgrad_fairgrad": {"update_minibatch"},
    "toppo_mt50 toppo_popart_ema": {"Args", "PopArt", "update"},
}


def parts(script):
    """{name: text} of a script's imports, constants, functions and classes."""
    text = ladder.path(script).read_text()
    lines = text.splitlines()
    found = {}
    for before, node in pairwise(ast.parse(text).body):
        part = "\n".join(lines[before.end_lineno : node.end_lineno])
        found[getattr(node, "name", part.strip())] = part
    return found


def changed_lines(parent, child):
    lines = "\n".join(ladder.diff(parent, child)).splitlines()
    return [line for line in lines if line[0] in "+-"]


@pytest.mark.parametrize(("change", "pairs"), [*MODULES, *((c, p) for p, c in VARIANTS.items())])
def test_scripts_differ_in_one_change_which_is_the_same_everywhere(change, pairs):
    pairs = [pair.split() for pair in pairs.split(", ")]
    for parent, child in pairs:
        before, after = parts(parent), parts(child)
        different = {name for name, _ in before.items() ^ after.items()}
        assert different == change, (parent, child)
        assert changed_lines(parent, child) == changed_lines(*pairs[0]), (parent, child)


def test_every_script_is_in_the_tree_and_imports_no_other():
    files = [ROOT / "vanilla_mtppo.py", ROOT / "toppo_mt50.py", *ROOT.glob("ablations/*.py")]
    assert sorted(files) == sorted(map(ladder.path, SCRIPTS))
    folders = [ROOT / folder for folder in (".", "ablations", "tests", "tools", "paper")]
    ours = {file.stem for folder in folders for file in folder.glob("*.py")}
    for file in files:
        found = list(ast.walk(ast.parse(file.read_text())))
        names = {node.module for node in found if isinstance(node, ast.ImportFrom)}
        names |= {x.name for node in found if isinstance(node, ast.Import) for x in node.names}
        assert names & ours <= {"fairgrad_solver"}, file


def test_the_page_shows_the_diffs_as_they_are():
    page = (ROOT / "docs/ladder.md").read_text()
    assert "<!-- diff vanilla_mtppo ln -->\n```diff\n@@ def linear(" in page
    assert ladder.docs(page) == page, "renew it by: python tools/ladder.py docs"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A repository with the scripts alone."""
    for script in SCRIPTS:
        file = tmp_path / ladder.path(script).relative_to(ROOT)
        file.parent.mkdir(exist_ok=True)
        shutil.copy(ladder.path(script), file)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    for words in (["init"], ["add", "."], [*identity, "commit", "--message", "scripts"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(ladder, "ROOT", tmp_path)


def edit(script, old, new):
    text = ladder.path(script).read_text()
    assert text.count(old) == 1
    ladder.path(script).write_text(text.replace(old, new))


def having(text):
    return {script for script in SCRIPTS if text in ladder.path(script).read_text()}


def test_carry_takes_an_edit_to_all_that_stand_below(copy):
    edit("vanilla_mtppo", "advantages = rewards +", "advantages = 2 * rewards +")
    ladder.carry(ladder.EDGES)
    assert having("advantages = 2 * rewards +") == {*SCRIPTS}

    # Again before the commit, further down, and to a script that stands elsewhere
    edit("ln_popart", "# our floor", "# a floor")
    ladder.carry(ladder.EDGES)
    below = {s for s in SCRIPTS if "ln_popart" in s or "toppo" in s}
    assert having("# a floor") == below
    ladder.carry([("ln_popart", "popart")])
    assert having("# a floor") == below | {"popart"}
    ladder.carry(ladder.EDGES)
    assert having("# a floor") == below | {"popart", "popart_fairgrad"}


def test_carry_stops_at_a_conflict(copy, capsys):
    line = "actor_weights = np.full(len(args.tasks), 1 / len(args.tasks))"
    edit("ln_popart", line, f"{line}  # 1/K")
    with pytest.raises(SystemExit, match="toppo_mt50: resolve its conflicts, then carry again"):
        ladder.carry(ladder.EDGES)
    assert "ln_popart_fairgrad -> toppo_mt50: 1 conflicts" in capsys.readouterr().out
    assert having(f"{line}  # 1/K") > {"ln_popart_fairgrad", "symmetric_ln_popart"}
