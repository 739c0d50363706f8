"""docs/paper_map.md lists all that the paper numbers and agrees with the code.

tools/paper_map.py notices where it does not.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("paper_map", ROOT / "tools/paper_map.py")
paper_map = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper_map)
PAGE = (ROOT / paper_map.PAGE).read_text()
TEXTS = paper_map.load()
NAMES = [  # (file, name) of all on the page
    (path, name)
    for _, path, names in paper_map.LINK.findall(PAGE)
    for name in re.findall("`([^`]+)`", names)
]
PAPERS = {  # its numbers begin with nothing, or with a section's or an appendix's: how many
    "Eq": {"": 3, "B.": 1, "C.": 5},
    "Algorithm": {"": 1, "C.": 2},
    "Theorem": {"": 1, "C.": 1},
    "Corollary": {"": 1},
    "Proposition": {"C.": 1},
    "Remark": {"": 2, "C.": 1},
    "Item": {"D": 3},
    "Table": {"": 3, "B.": 2, "C.": 1, "D.": 11},
    "Figure": {"": 4, "D.": 10},
    "Section": {"": 6, "4.": 3, "5.": 3, "B.": 5, "C.": 5, "D.": 7},
}


def edited(path, old, new):
    """The files, with one of them edited by hand."""
    assert TEXTS[path].count(old) == 1, (path, old)
    return TEXTS | {path: TEXTS[path].replace(old, new)}


def test_the_page_holds():
    assert paper_map.problems(PAGE, TEXTS) == []


def test_the_page_has_all_that_the_paper_numbers():
    found = defaultdict(set)
    for _, cells, items in paper_map.rows(PAGE.split("## Not the paper's")[0]):
        assert len(cells) == 4, f"{cells[0]}: expected item, what it says, where, checked by"
        assert cells[1], cells[0]
        assert cells[2], cells[0]
        for kind, number in items:
            last = re.search(r"\d+$", number)[0]
            found[kind, number.rstrip("0123456789")].add(int(last))
    # Of Algorithm C.1, the lines that the paper's text numbers
    assert found.pop(("Line", "")) == {3, 6, *range(9, 15)}
    assert found == {
        (kind, start): set(range(1, count + 1))
        for kind, counts in PAPERS.items()
        for start, count in counts.items()
    }


def test_the_page_begins_with_ten_things_to_read():
    start = PAGE.split("Below is everything")[0]
    assert re.findall(r"^(\d+)\. ", start, re.M) == [str(i) for i in range(1, 11)]


def test_the_page_has_no_line_numbers():
    assert not re.search(r"\.py:\d|#L\d", PAGE)


# --- Code broken by hand


@pytest.mark.parametrize(
    ("path", "old", "new", "name"),
    [
        ("toppo_mt50.py", "def policy_loss(", "def actor_loss(", "policy_loss"),
        ("toppo_mt50.py", "class PopArt(", "class Popart(", "PopArt.update"),
        ("vanilla_mtppo.py", "def gae(", "def advantages(", "gae"),
        ("toppo_mt50.py", "    eval_interval: int", "    eval_every: int", "--eval-interval"),
        ("fairgrad_solver.py", "def _newton(", "def _tier_1(", "_newton"),
        ("paper/runs.py", "def late(", "def at_the_end(", "late"),
    ],
)
def test_a_renamed_definition_is_noticed(path, old, new, name):
    found = "\n".join(paper_map.problems(PAGE, edited(path, old, new)))
    assert f"{path} `{name}`: expected a f" in found  # a function or a flag
    assert "which is gone" in found


def test_all_names_are_held_to_the_code():
    """All definitions that the page names get other names: all of its names are gone."""
    words = defaultdict(set)
    for path, name in NAMES:
        words[path].add(last_word(name))
    texts = {
        path: re.sub(rf"\b({'|'.join(words[path])})\b", r"\1_2", TEXTS[path]) for path in words
    }
    assert len(NAMES) > 200
    for path, name in NAMES:
        (found,) = paper_map.check_names(f"[`{path}`](../{path}) `{name}`", texts)
        assert f"{path} `{name}`: expected a" in found


def last_word(name):
    """`--num-steps 3`: num_steps; `PopArt.update`: update; `f(a=3)`: f."""
    if name.startswith("--"):
        return name[2:].split()[0].replace("-", "_")
    return re.split(r"[ (]", name)[0].split(".")[-1]


@pytest.mark.parametrize(
    ("path", "old", "new", "expected"),
    [
        ("toppo_mt50.py", "gamma: float = 0.99", "gamma: float = 0.98", "`--gamma 0.99`: found"),
        ("toppo_mt50.py", "(400, 400, 400)", "(400, 400)", "`--hidden-sizes 400 400 400`: found"),
        ("toppo_mt50.py", "clip_vloss: bool = True", "clip_vloss: bool = False", "`--clip-vloss`"),
        ("toppo_mt50.py", '= "v2"', '= "v1"', "`--reward-version v2`: found 'v1'"),
        ("toppo_mt50.py", "OBS_DIM = 39", "OBS_DIM = 36", "`OBS_DIM = 39`: found 36"),
        ("fairgrad_solver.py", "tol: float = 1e-10", "tol: float = 1e-8", "found 1e-08"),
        ("fairgrad_solver.py", "alpha: float = 1.0,", "alpha: float,", "found no value"),
    ],
)
def test_a_changed_default_is_noticed(path, old, new, expected):
    text = TEXTS[path].replace(old, new, 1)
    assert text != TEXTS[path]
    found = "\n".join(paper_map.check_names(PAGE, TEXTS | {path: text}))
    assert expected in found


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("Args.track", True),
        ("B", False),
        ("A = 3", True),
        ("A = 4", False),
        ("Args.other", False),
        ("f", True),
        ("f(b=2)", True),
        ("f(b=3)", False),
        ("f(c='x', b=2)", True),
        ("f(a=1)", False),
        ("f = 1", False),
        ("--track", False),
        ("--no-track", True),
        ("--number", True),
        ("--number 10_000", True),
        ("--number 1e4", True),
        ("--number 9", False),
        ("--zero 0", True),
        ("--zero 1", False),
        ("--sizes 4 5", True),
        ("--sizes 5 4", False),
        ("--other", False),
    ],
)
def test_names(name, right):
    source = (
        "A = 3\ndef f(a, b=2, *, c='x'): pass\n"
        "class Args:\n  track: bool = False\n  number: int = 10_000\n  zero: int = 0\n"
        "  sizes: tuple = (4, 5)\n"
    )
    found = paper_map.definitions(source)
    assert (paper_map.wrong(name, found) is None) == right


def test_an_edit_elsewhere_is_not_noticed():
    texts = {path: "# a line more\n\n" + text for path, text in TEXTS.items()}
    assert paper_map.problems(PAGE, texts) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("| Eq. (1) | x | [`gone.py`](../gone.py) `f` | |", "gone.py: expected a file"),
        ("| Eq. (1) | x | [`a`](../b) | |", "a leads to b"),
        ("| Eq. (1) | x | `policy_loss` | |", "expected names behind the link"),
        ("| Eq. (1) | x | [here](../toppo_mt50.py) | |", "expected names behind the link"),
        ("1. [`toppo_mt50.py`](../toppo_mt50.py) `gone`: first", "toppo_mt50.py `gone`: expected"),
    ],
)
def test_other_mistakes_of_the_page_are_noticed(line, expected):
    assert expected in "\n".join(paper_map.check_names(f"{PAGE}\n{line}\n", TEXTS))


# --- Numbers in comments


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("# Eq. (4)", "Eq 4"),
        ('"""Equation (C.6)"""', "Eq C.6"),
        ("# Eqs. (1) and (B.2)", "Eq B.2"),
        ("# Algorithm C.3", "Algorithm C.3"),
        ("# Algorithm C.1, line 8", "Line 8"),
        ("# Lines 9 to 15", "Line 15"),
        ("x = 1  # lines 13-15", "Line 15"),
        ("# Theorem 2", "Theorem 2"),
        ("# Corollary C.1", "Corollary C.1"),
        ("# Proposition 1", "Proposition 1"),
        ("# Remark 3", "Remark 3"),
        ("# Definition 1", "Definition 1"),
        ("# Lemma C.1", "Lemma C.1"),
        ("# Table A.1", "Table A.1"),
        ("# Table 4", "Table 4"),
        ('x = f"Tables D.5 (MT10) to D.12"', "Table D.12"),
        ("# Figures 1 (left), 4 and D.11", "Figure D.11"),
        ('def f():\n    """Figure\n    5"""', "Figure 5"),
        ("# Section 4.4", "Section 4.4"),
        ("# section 7", "Section 7"),
        ("# Appendix B.6", "Section B.6"),
        ("# (B.6)", " B.6"),
        ("# (5.4)", " 5.4"),
        ("# (4.1, D.12)", " D.12"),
        ("# (D4)", " D4"),
    ],
)
def test_numbers_that_the_paper_lacks_are_noticed(text, name):
    (found,) = paper_map.check_numbers(PAGE, {"ablations/new.py": f"\n{text}\n"})
    line = 3 if text.startswith("def") else 2
    assert found.startswith(
        f"ablations/new.py:{line}: names {name}, which is not among the paper's"
    )


def test_numbers_that_the_paper_has_are_not():
    text = '''
x = "Tables D.5 (MT10, V2), D.6 (MT50, V2) and D.7 (MT50, V1)"  # Eq. (1), (B.1) and B.5
y = 4.7, 2.6  # Section 2: 3 tasks of 5; Table B.1: 10 seeds, 0.5 and 1.5 M; Theorem 1, 7 times
"""Algorithm C.1, lines 9-12; 12 lines, line by line. Sections 4.1 to 4.3 and items (D1) to (D3);
an item of 9, D.C. 9 (7.5 s), version 3.0.0 and EnvPool 1.2.5 (2.13.4)."""
'''
    assert list(paper_map.check_numbers(PAGE, {"ablations/new.py": text})) == []


@pytest.mark.parametrize("path", ["toppo_mt50.py", "ablations/ln.py", "paper/runs.py"])
def test_a_wrong_number_in_a_comment_is_noticed(path):
    texts = TEXTS | {path: TEXTS[path] + "# Table B.3\n"}
    (found,) = paper_map.problems(PAGE, texts)
    assert found.startswith(f"{path}:") and "Table B.3" in found


def test_the_command(tmp_path):
    for path in [*TEXTS, paper_map.PAGE, "requirements.txt", "results/fairgrad_solver.md"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)

    def run(*words):
        command = [sys.executable, "tools/paper_map.py", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("check")
    assert (done.returncode, done.stderr) == (0, "")
    text = TEXTS["toppo_mt50.py"].replace("policy_loss", "actor_loss")
    (tmp_path / "toppo_mt50.py").write_text(text)
    done = run("check")
    assert done.returncode == 1
    assert "toppo_mt50.py `policy_loss`: expected a function" in done.stderr
    assert "Traceback" not in done.stderr
    done = run()
    assert done.returncode == 1
    assert "python tools/paper_map.py check" in done.stderr
