"""tools/ladder.py: scripts are within limits, one text but for their rungs, and the page is fresh.

An edit reaches the scripts that have its lines and no others.
"""

import importlib.util
import io
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("ladder", ROOT / "tools" / "ladder.py")
ladder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ladder)
SCRIPTS = ladder.scripts()
POPART = [s for s in SCRIPTS if "popart" in s or "toppo" in s]
PCGRAD = [s for s in SCRIPTS if "pcgrad" in s or "toppo" in s]


class Clone:
    """A temporary clone with this work tree's scripts committed."""

    def __init__(self, path):
        self.path = path
        command = ["git", "clone", "--quiet", "--no-hardlinks", "--depth=1", f"file://{ROOT}", path]
        subprocess.run(command, check=True)
        for file in [*SCRIPTS, "tools/ladder.py"]:
            (path / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, path / file)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "work tree")

    def git(self, *args):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        command = ["git", *who, "-c", "core.hooksPath=/dev/null", *args]
        done = subprocess.run(command, cwd=self.path, check=True, capture_output=True, text=True)
        return done.stdout

    def restore(self):
        self.git("checkout", "--quiet", "HEAD", "--", ".")
        (self.path / ".git" / "ladder-carry.json").unlink(missing_ok=True)

    def ladder(self, command, *args, rc=0):
        """Runs check or carry on the clone, in this process, which remembers unchanged scripts."""
        output = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(output),
            redirect_stderr(output),
        ):
            patch.setattr(ladder, "ROOT", self.path)
            with pytest.raises(SystemExit) as end:
                getattr(ladder, command)(*args)
        message = end.value.code if isinstance(end.value.code, str) else ""
        assert (1 if message else end.value.code) == rc, output.getvalue() + message
        return output.getvalue() + message

    def disagreements(self):
        """What check says of scripts that should be the same, without measuring them all again."""
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr(ladder, "ROOT", self.path)
            return ladder.check_rungs()

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
    one_clone.restore()
    return one_clone


# --- The scripts and the page


def test_the_scripts_are_within_their_limits_and_agree():
    command = [sys.executable, "tools/ladder.py", "check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tree_has_every_script_once():
    lines = list(ladder.family(ladder.ROOT_SCRIPT))
    assert sorted(line.split()[0] for line in lines) == sorted(ladder.RUNGS)
    there = [f"ablations/{path.name}" for path in (ROOT / "ablations").glob("*.py")]
    assert {*there, "vanilla_mtppo.py", "toppo_mt50.py"} == set(ladder.RUNGS)


def test_the_page_is_not_stale():
    fresh = ladder.PAGE.read_text() == ladder.page()
    assert fresh, "docs/ladder.md is stale: python tools/ladder.py docs"


def sections():
    """{script: its section of the page}."""
    _, *found = re.split(r"^## `([^`]+)`$", ladder.page(), flags=re.M)
    return dict(zip(found[::2], found[1::2]))


def test_the_page_has_every_changed_line_once():
    """In the section of its rung, or in the one that this links to."""
    text = sections()
    assert list(text) == SCRIPTS
    times_shown = {}
    for parent, script in ladder.edges():
        linked = re.findall(r"\[`([^`]+)`\]\(#", text[script])
        for hunk in ladder.hunks(parent, script):
            lines = "\n".join(hunk.changed())
            shown = "\n".join(hunk.lines)
            assert any(shown in text[s] for s in [script, *linked]) or any(
                all(line in text[s] for line in lines.splitlines()) for s in linked
            ), (script, hunk.part)
            times_shown[hunk.part, lines] = sum(shown in section for section in text.values())
    assert max(times_shown.values()) == 1


def test_the_links_of_the_page_lead_somewhere():
    anchors = {re.sub(r"\W", "", script) for script in sections()}
    assert set(re.findall(r"\]\(#([^)]+)\)", ladder.page())) <= anchors
    for path in re.findall(r"\]\(\.\./([^)]+)\)", ladder.page()):
        assert (ROOT / path).exists(), path


def test_weights_are_the_combiners_only():
    """w_k is the combiner's; PopArt's head is c_k, b_k."""
    rung = ladder.RUNGS["ablations/ln_popart.py"]
    assert not re.search(r"\bw_k\b|\bw\b", " ".join(rung.math) + rung.lesson)
    assert "c_k" in rung.math[0]


def test_parts_have_every_line():
    for script in SCRIPTS:
        named = ladder.named_lines(ladder.source_of(script))
        assert [line for _, line in named] == ladder.lines_of(script)


# --- Density


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ("x = f(1)\n", 6),
        ("x = f(1)  # a comment\n\n# another\n", 6),
        ('"""A docstring\nof two lines."""\n\nx = 1\n', 3),
        ('class A:\n    a: int = 1\n    """of a field"""\n', 8),
        ('x = """a\nb\nc"""\n', 3),
        ('x = f"{a + b} and {f(c):{width}} {f(d)!r}"\n', 3),
        ('print(f"{a}" "b")\n', 5),
        ("for i in range(3):\n    pass\n", 9),
    ],
)
def test_tokens(source, tokens):
    assert ladder.density(source).tokens == tokens


def test_tokens_a_line_counts_lines_with_code():
    source = '"""Of three tokens\nin two lines."""\n\nx = [\n    1,\n]  # 7 of code\n'
    assert ladder.density(source).tokens_a_line == 6 / 3


@pytest.mark.parametrize(
    ("line", "packed"),
    [
        ("f(), g()", True),
        ("a = b = 1", True),
        ("a, b = 1, 2", True),
        ("print(a := 1)", True),
        ("a, b = f()", False),
        ("a = 1, 2", False),
        ("f(1, 2)", False),
        ("(a, b), c = f()", False),
    ],
)
def test_packed_lines(line, packed):
    found = ladder.density(f"def f():\n    x = 1\n    {line}\n").packed
    assert found == ([3] if packed else [])


def test_wide_lines_are_those_of_code():
    line = "x = 1" + " + 1" * 24  # 101 columns
    assert ladder.density(f"#{'-' * 200}\n{line}\n{line[:-4]}\n").wide == [2]


def test_the_longest_function():
    source = (
        "def f():\n    x = 1\n\n\nclass A:\n    def g(self):\n        def h():\n            pass\n"
    )
    assert ladder.density(source).longest == (3, "g")


# --- What check says about scripts broken by hand


def test_check_names_an_edit_of_one_script(clone):
    clone.edit("ablations/ln.py", "    advantage = 0.0\n", "    advantage = 0.0 * 1\n")
    output = clone.ladder("check", rc=1)
    assert "ablations/ln.py: gae differs from vanilla_mtppo.py's" in output
    clone.restore()

    with_popart = "        batch_mu = returns.mean(1)\n"
    clone.edit("ablations/popart.py", with_popart, "        batch_mu = returns.mean(dim=1)\n")
    output = clone.ladder("check", rc=1)
    assert "popart.py: PopArt changes other lines than in ablations/ln_popart.py" in output
    clone.restore()

    clone.edit("ablations/symmetric_ln_popart.py", "gain=0.01, layer_norm=True", "gain=0.01")
    output = clone.ladder("check", rc=1)
    assert "symmetric_ln_popart.py: Agent.__init__ is ablations/ln_popart.py's" in output


def test_check_names_a_rung_over_its_budget(clone):
    first = "    coefficients = np.eye(num_tasks)"
    clone.edit("toppo_mt50.py", first, "    # line\n" * 60 + first)
    output = clone.ladder("check", rc=1)
    assert "toppo_mt50.py: 82 changed lines, at most 25 expected" in output
    assert "gae" not in output


def test_check_names_a_script_over_its_budget_of_tokens(clone):
    spend = "    x = [0, 0, 0, 0, 0, 0, 0, 0, 0]\n"  # 21 tokens
    for script, budget in ladder.TOKENS.items():
        clone.edit(script, "    advantage = 0.0\n", spend * 5 + "    advantage = 0.0\n")
        output = clone.ladder("check", rc=1)
        assert re.search(rf"{script}: [\d,]+ tokens, at most {budget:,} expected", output)


def test_check_names_dense_lines(clone):
    line = "    advantage = 0.0\n"
    dense = "    x = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n"
    wide = "    x = 1" + " + 1" * 30 + "\n"
    long = "    x = 1\n" * 50
    clone.edit("ablations/ln.py", line, dense * 40 + wide + long + "    a = b = 1\n" + line)
    output = clone.ladder("check", rc=1)
    assert re.search(r"ablations/ln.py: 1\d\.\d\d tokens a code line, at most 10.6", output)
    assert re.search(r"ablations/ln.py:\d+: more than 100 columns", output)
    assert re.search(r"ablations/ln.py:\d+: .*two assignments in one", output)
    assert re.search(r"ablations/ln.py: gae has 1\d\d lines, at most 60 expected", output)


def test_check_names_a_function_that_the_tour_shows_and_is_gone(clone):
    clone.edit("vanilla_mtppo.py", "\ndef gae(", "\ndef advantages_of(")
    assert "vanilla_mtppo.py: gae is gone, which TOUR shows" in clone.ladder("check", rc=1)


# --- carry


def test_an_edit_of_shared_text_reaches_all(clone):
    back = "in range(rewards.shape[-1])[::-1]:  # back"
    clone.edit("vanilla_mtppo.py", "in reversed(range(rewards.shape[-1])):", back)
    clone.edit("vanilla_mtppo.py", "\ndef gram(J):", "\n# the Gram\ndef gram(J):")
    output = clone.ladder("carry", "vanilla_mtppo.py")
    assert output.count("carried") == len(SCRIPTS) - 1
    assert clone.having(back) == SCRIPTS
    assert clone.having("# the Gram\ndef gram") == SCRIPTS
    assert clone.disagreements() == []
    total = f"{2 * len(SCRIPTS)} insertions(+), {len(SCRIPTS)} deletions(-)"
    assert total in clone.git("diff", "--shortstat")

    # Once more changes nothing; another edit of the line replaces the first
    output = clone.ladder("carry", "vanilla_mtppo.py")
    assert output.count("unchanged") == len(SCRIPTS) - 1
    clone.edit("vanilla_mtppo.py", "  # back", "  # backwards")
    clone.ladder("carry", "vanilla_mtppo.py")
    assert clone.having(back + "wards") == SCRIPTS

    # The edit undone is undone everywhere
    clone.git("checkout", "--quiet", "HEAD", "--", "vanilla_mtppo.py")
    clone.ladder("carry", "vanilla_mtppo.py")
    assert clone.touched() == []


def test_an_edit_beside_a_rungs_own_line_reaches_all(clone):
    above = "  # [K, K] each; the only wait for the GPU"  # all have it, above FairGrad's lines
    own = "fairgrad = solve_fairgrad(critic_gram, alpha=1.0)"
    with_fairgrad = clone.having(own)
    clone.edit("toppo_mt50.py", above, "  # the one wait for the GPU")
    clone.edit("toppo_mt50.py", own, own.replace("1.0", "1.5"))
    clone.ladder("carry", "toppo_mt50.py")
    assert clone.having("  # the one wait for the GPU") == SCRIPTS
    assert clone.having(own.replace("1.0", "1.5")) == with_fairgrad
    assert clone.disagreements() == []


@pytest.mark.parametrize("script", ["toppo_mt50.py", "ablations/ln_popart_pcgrad_pcgrad.py"])
def test_an_edit_of_a_rungs_own_lines_stays_there(clone, script):
    line = "        for j in rng.permutation(num_tasks):\n"
    assert clone.having(line) == PCGRAD
    clone.edit(script, line, "        # in random order\n" + line)
    title = (clone.path / script).read_text().split("\n")[0]
    clone.edit(script, title, '"""Another title')
    output = clone.ladder("carry", script)
    assert clone.having("        # in random order\n") == PCGRAD
    assert clone.having('"""Another title') == [script]
    assert clone.touched() == PCGRAD
    assert "unchanged  vanilla_mtppo.py (not its lines: 1, " in output
    assert clone.disagreements() == []


def test_an_edit_of_popart_reaches_both_sides_of_the_cube(clone):
    line = "        returns = returns.flatten(1).double()\n"
    assert clone.having(line) == POPART
    clone.edit("ablations/ln_popart.py", line, "        returns = returns.double().flatten(1)\n")
    clone.ladder("carry", "ablations/ln_popart.py")
    assert clone.having("returns = returns.double().flatten(1)") == POPART
    assert clone.touched() == POPART
    assert clone.disagreements() == []


def test_a_conflict_is_reported_and_marked_and_resolved_once(clone):
    old = "torch.stack([self.critic(task_obs).squeeze(-1) for task_obs in obs])"
    new = "torch.stack([self.critic(task_obs)[..., 0] for task_obs in obs])"
    clone.edit("vanilla_mtppo.py", f"return {old}", f"return {new}")  # PopArt has something else
    clone.edit("vanilla_mtppo.py", "    advantage = 0.0\n", "    advantage = 0.0  # none\n")
    output = clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    assert clone.conflicts() == POPART
    assert clone.having("advantage = 0.0  # none") == SCRIPTS  # the rest of the edit arrived
    for script in POPART:
        lines = (clone.path / script).read_text().splitlines()
        number = next(i for i, line in enumerate(lines, 1) if line.startswith("<<<<<<< "))
        assert re.search(rf"^conflict   {script}: resolve at line {number}$", output, re.M)
        marked = "\n".join(lines[number : lines.index(">>>>>>> vanilla_mtppo.py")])
        assert f"h = {old}" in marked
        assert f"return {old}" in marked
        assert f"return {new}" in marked

    # Again: the same
    again = clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    assert again.replace("unchanged", "carried  ") == output
    output = clone.ladder("carry", "ablations/ln_popart.py", rc=1)
    assert "ablations/ln_popart.py: has conflict markers" in output

    # Resolved in one script and carried from there: resolved in all, and nothing else is lost
    file = clone.path / "ablations/ln_popart.py"
    text = ladder.CONFLICT.sub(lambda conflict: conflict[1], file.read_text())
    file.write_text(text.replace(old, new))
    clone.ladder("carry", "ablations/ln_popart.py")
    assert clone.conflicts() == []
    assert clone.having(new) == SCRIPTS
    assert clone.having("advantage = 0.0  # none") == SCRIPTS
    assert clone.disagreements() == []


def test_a_line_added_beside_a_rungs_own_lines_is_the_rungs(clone):
    last = '    metrics["popart_sigma"] = agent.popart.sigma\n'
    clone.edit("ablations/ln_popart.py", last, last + "    # own\n")
    clone.ladder("carry", "ablations/ln_popart.py")
    assert clone.having("    # own\n") == POPART
    clone.restore()

    # Added in a script that lacks the rung's lines, it is everybody's, and only a person can say
    # whether it goes above or below them
    last = '    metrics["explained_variance"] = 1 - unexplained\n'
    clone.edit("vanilla_mtppo.py", last, last + "    # shared\n")
    clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    assert clone.conflicts() == POPART
    file = clone.path / "ablations/popart.py"
    resolve = ladder.CONFLICT.sub(lambda conflict: conflict[3] + conflict[1], file.read_text())
    file.write_text(resolve)
    clone.ladder("carry", "ablations/popart.py")
    assert clone.conflicts() == []
    assert clone.having("    # shared\n") == SCRIPTS
    assert clone.disagreements() == []


def test_changes_in_other_scripts_are_kept_or_stop_the_carry(clone):
    clone.edit("ablations/ln.py", "\ndef gae(", "\n# of ln.py\ndef gae(")
    clone.edit("vanilla_mtppo.py", "\ndef gram(", "\n# the Gram\ndef gram(")
    clone.ladder("carry", "vanilla_mtppo.py")
    assert clone.having("# the Gram") == SCRIPTS
    assert clone.having("# of ln.py") == ["ablations/ln.py"]
    clone.restore()

    clone.edit("ablations/ln.py", "    advantage = 0.0\n", "    advantage = 1.0\n")
    clone.edit("vanilla_mtppo.py", "    advantage = 0.0\n", "    advantage = 2.0\n")
    output = clone.ladder("carry", "vanilla_mtppo.py", rc=1)
    expected = "its own uncommitted changes are where the edit of vanilla_mtppo.py goes"
    assert f"ablations/ln.py: {expected}" in output
    assert clone.touched() == ["vanilla_mtppo.py", "ablations/ln.py"]


def test_carry_names_the_scripts_that_there_are(clone):
    command = [sys.executable, "tools/ladder.py", "carry", "nothing.py"]
    done = subprocess.run(command, cwd=clone.path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "expected one of the ladder's scripts: vanilla_mtppo.py, " in done.stderr
