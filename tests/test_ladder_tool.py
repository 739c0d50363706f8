"""tools/ladder.py: the page is fresh, the scripts agree, and an edit reaches the scripts that have its lines and no others."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
from scripts import ROOT

spec = importlib.util.spec_from_file_location("ladder", ROOT / "tools" / "ladder.py")
ladder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ladder)
SCRIPTS = ladder.scripts()
POPART = [s for s in SCRIPTS if "popart" in s or "toppo" in s]


class Clone:
    """A temporary clone with this work tree's scripts committed."""

    def __init__(self, path):
        self.path = path
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, path], check=True)
        for file in [*SCRIPTS, "tools/ladder.py"]:
            (path / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, path / file)
        self.commit()

    def git(self, *args):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "core.hooksPath=/dev/null"]
        return subprocess.run(["git", *who, *args], cwd=self.path, check=True, capture_output=True, text=True).stdout

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "work tree")

    def ladder(self, *args, rc=0):
        done = subprocess.run([sys.executable, "tools/ladder.py", *args], cwd=self.path, capture_output=True, text=True)
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout + done.stderr

    def edit(self, script, old, new):
        text = (self.path / script).read_text()
        assert text.count(old) == 1, (script, old, text.count(old))
        (self.path / script).write_text(text.replace(old, new))

    def having(self, text):
        return [s for s in SCRIPTS if text in (self.path / s).read_text()]

    def touched(self):
        return [s for s in SCRIPTS if s in self.git("diff", "--name-only").split()]

    def conflicts(self):
        return self.having("<<<<<<< ")


@pytest.fixture(scope="module")
def one_clone(tmp_path_factory):
    return Clone(tmp_path_factory.mktemp("ladder") / "clone")


@pytest.fixture
def clone(one_clone):
    one_clone.git("checkout", "--quiet", "HEAD", "--", ".")
    (one_clone.path / ".git" / "ladder-carry.json").unlink(missing_ok=True)
    return one_clone


def test_the_scripts_agree_with_the_table():
    done = subprocess.run([sys.executable, "tools/ladder.py", "check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tree_has_every_script_once():
    lines = list(ladder.family(ladder.ROOT_SCRIPT))
    assert sorted(line.split()[0] for line in lines) == sorted(ladder.RUNGS)


def test_the_page_is_not_stale():
    assert ladder.PAGE.read_text() == ladder.page(), "docs/ladder.md is stale: python tools/ladder.py docs"


def test_parts_have_every_line():
    for script in SCRIPTS:
        lines = ladder.lines_of(script)
        parts = sum(ladder.parts(lines).values(), [])
        assert sorted(parts) == sorted(lines)


def test_check_names_what_is_wrong(clone):
    clone.edit("ablations/ln.py", "advantages, advantage = torch", "advantages, advantage = 1 * torch")
    output = clone.ladder("check", rc=1)
    assert "ablations/ln.py: gae differs from vanilla_mtppo.py's" in output
    clone.git("checkout", "--quiet", "HEAD", "--", ".")
    clone.edit("toppo_mt50.py", "    num_tasks = len(gram)\n", "    num_tasks = len(gram)\n" + "    # line\n" * 60)
    output = clone.ladder("check", rc=1)
    assert "toppo_mt50.py: 79 changed lines, at most 60 expected" in output
    assert "gae" not in output
    clone.git("checkout", "--quiet", "HEAD", "--", ".")
    clone.edit("ablations/popart.py", "m2 = self.m2 + batch_m2", "m2 = batch_m2 + self.m2")
    assert "PopArt changes other lines than in ablations/ln_popart.py" in clone.ladder("check", rc=1)


def test_an_edit_of_shared_text_reaches_all(clone):
    clone.edit("vanilla_mtppo.py", "in reversed(range(rewards.shape[-1])):", "in range(rewards.shape[-1])[::-1]:  # back")
    clone.edit("vanilla_mtppo.py", "\ndef gram(grads):", "\n# the Gram\ndef gram(grads):")
    output = clone.ladder("carry", "vanilla_mtppo.py")
    assert output.count("carried") == len(SCRIPTS) - 1
    assert clone.having("[::-1]:  # back") == clone.having("# the Gram\ndef gram") == SCRIPTS
    clone.ladder("check")
    assert f"{2 * len(SCRIPTS)} insertions(+), {len(SCRIPTS)} deletions(-)" in clone.git("diff", "--shortstat")

    # Once more changes nothing; another edit of the same line replaces the first; the edit undone is undone everywhere.
    assert clone.ladder("carry", "vanilla_mtppo.py").count("unchanged") == len(SCRIPTS) - 1
    clone.edit("vanilla_mtppo.py", "  # back", "  # backwards")
    clone.ladder("carry", "vanilla_mtppo.py")
    assert clone.having("[::-1]:  # backwards") == SCRIPTS
    clone.git("checkout", "--quiet", "HEAD", "--", "vanilla_mtppo.py")
    clone.ladder("carry", "vanilla_mtppo.py")
    assert clone.touched() == []


def test_an_edit_beside_a_rungs_own_line_reaches_all(clone):
    above = "  # the only wait for the GPU"  # all have it, above the line that PCGrad replaces
    below = "  fairgrad = solve_fairgrad(critic_gram.numpy(), alpha=1.0)"  # FairGrad's, below that line
    with_fairgrad = clone.having(below)
    clone.edit("toppo_mt50.py", above, "  # the one wait for the GPU")
    clone.edit("toppo_mt50.py", below, below.replace("1.0", "1.5"))
    clone.ladder("carry", "toppo_mt50.py")
    assert clone.having("  # the one wait for the GPU") == SCRIPTS
    assert clone.having(below.replace("1.0", "1.5")) == with_fairgrad
    clone.ladder("check")


@pytest.mark.parametrize("script", [s for s in ("toppo_mt50.py", "ablations/ln_popart_pcgrad_pcgrad.py") if s in SCRIPTS])
def test_an_edit_of_a_rungs_own_lines_stays_there(clone, script):
    with_pcgrad = clone.having("def pcgrad_weights")
    clone.edit(script, "        i = np.flatnonzero(", "        # conflict\n        i = np.flatnonzero(")
    clone.edit(script, '"""' + (clone.path / script).read_text().split("\n")[0][3:], '"""Another title')
    output = clone.ladder("carry", script)
    assert clone.having("        # conflict\n") == with_pcgrad
    assert clone.having('"""Another title') == [script]
    assert set(clone.touched()) == set(with_pcgrad)
    assert "unchanged  vanilla_mtppo.py (not its lines: 1, " in output
    clone.ladder("check")


def test_an_edit_of_popart_reaches_both_sides_of_the_cube(clone):
    with_it = clone.having("        batch_mu = returns.mean(1)\n")
    assert set(with_it) == set(POPART)
    clone.edit("ablations/ln_popart.py", "        batch_mu = returns.mean(1)\n", "        batch_mu = returns.mean(dim=1)\n")
    clone.ladder("carry", "ablations/ln_popart.py")
    assert clone.having("batch_mu = returns.mean(dim=1)") == with_it == clone.touched()
    clone.ladder("check")


def test_a_conflict_is_reported_and_marked_and_resolved_once(clone):
    old = "self.critic(o).squeeze(-1) for o in obs"  # PopArt puts something else in this line's place
    clone.edit("vanilla_mtppo.py", old, "self.critic(o)[..., 0] for o in obs")
    clone.edit("vanilla_mtppo.py", "advantages, advantage = torch", "advantages, advantage = 1 * torch")
    output = clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    assert clone.conflicts() == POPART
    assert clone.having("advantage = 1 * torch") == SCRIPTS  # the rest of the edit arrived
    for script in POPART:
        lines = (clone.path / script).read_text().splitlines()
        number = next(i for i, line in enumerate(lines) if line.startswith("<<<<<<< ")) + 1
        assert re.search(rf"^conflict   {script}: resolve at line {number}$", output, re.M)
        marked = "\n".join(lines[number : lines.index(">>>>>>> vanilla_mtppo.py")])
        assert "self.critic(o)[..., 0]" in marked and "heads = zip(" in marked and old in marked  # all three sides

    # Again: the same. Resolved in one script and carried from there: resolved in all, and nothing else is lost.
    assert clone.ladder("carry", "vanilla_mtppo.py", rc=1).replace("unchanged", "carried  ") == output
    assert "ablations/ln_popart.py: has conflict markers" in clone.ladder("carry", "ablations/ln_popart.py", rc=1)
    text = ladder.CONFLICT.sub(lambda c: c[1], (clone.path / "ablations/ln_popart.py").read_text())
    (clone.path / "ablations/ln_popart.py").write_text(text.replace("self.critic(o).squeeze(-1)", "self.critic(o)[..., 0]"))
    clone.ladder("carry", "ablations/ln_popart.py")
    assert clone.conflicts() == []
    assert clone.having("self.critic(o)[..., 0]") == clone.having("advantage = 1 * torch") == SCRIPTS
    clone.ladder("check")


def test_a_line_added_beside_a_rungs_own_lines_is_the_rungs(clone):
    last = '        log("popart_sigma", agent.sigma.cpu().numpy())\n'
    clone.edit("ablations/ln_popart.py", last, last + "        # own\n")
    clone.ladder("carry", "ablations/ln_popart.py")
    assert clone.having("        # own\n") == POPART
    clone.git("checkout", "--quiet", "HEAD", "--", ".")

    # Added in a script that lacks the rung's lines, it is everybody's, and only a person can say above or below them.
    first = '        log("train_success", success.mean(1))\n'
    clone.edit("vanilla_mtppo.py", first, "        # shared\n" + first)
    clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    assert clone.conflicts() == POPART
    text = ladder.CONFLICT.sub(lambda c: c[1] + c[3], (clone.path / "ablations/popart.py").read_text())
    (clone.path / "ablations/popart.py").write_text(text)
    clone.ladder("carry", "ablations/popart.py")
    assert clone.conflicts() == [] and clone.having("        # shared\n") == SCRIPTS
    clone.ladder("check")


def test_changes_in_other_scripts_are_kept_or_stop_the_carry(clone):
    clone.edit("ablations/ln.py", "\ndef gae(", "\n# of ln.py\ndef gae(")
    clone.edit("vanilla_mtppo.py", "\ndef gram(", "\n# the Gram\ndef gram(")
    clone.ladder("carry", "vanilla_mtppo.py")
    assert clone.having("# the Gram") == SCRIPTS and clone.having("# of ln.py") == ["ablations/ln.py"]
    clone.git("checkout", "--quiet", "HEAD", "--", ".")
    clone.edit("ablations/ln.py", "advantages, advantage = torch", "advantages, advantage = 1 * torch")
    clone.edit("vanilla_mtppo.py", "advantages, advantage = torch", "advantages, advantage = 2 * torch")
    output = clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    assert "ablations/ln.py: its own uncommitted changes are where the edit of vanilla_mtppo.py goes" in output
    assert clone.touched() == ["vanilla_mtppo.py", "ablations/ln.py"]


def test_carry_names_the_scripts_that_there_are(clone):
    assert "expected one of the ladder's scripts: vanilla_mtppo.py, " in clone.ladder("carry", "nothing.py", rc=1)
