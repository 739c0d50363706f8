"""docs/paper_map.md lists all that the paper numbers and agrees with the code; tools/paper_map.py notices where it does not."""

import importlib.util
import random
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
PAGE, TEXTS = (ROOT / paper_map.PAGE).read_text(), paper_map.load()
LINKS = [(line, match) for line in PAGE.splitlines() for match in paper_map.LINK.finditer(line)]
PAPERS = {  # its numbers begin with nothing, with a section's or an appendix's: how many there are; none is left out
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


def test_the_page_holds():
    assert [*paper_map.check_links(PAGE, TEXTS), *paper_map.check_names(PAGE, TEXTS)] == []


def test_the_page_has_all_that_the_paper_numbers():
    found = defaultdict(set)
    for _, cells, items in paper_map.rows(PAGE.split("## Not the paper's")[0]):
        assert len(cells) == 4 and cells[1] and cells[2], f"{cells[0]}: expected item, what it says, where, checked by"
        for kind, number in items:
            found[kind, number.rstrip("0123456789")].add(int(re.search(r"\d+$", number)[0]))
    assert found.pop(("Line", "")) == {3, 6, *range(9, 15)}  # of Algorithm C.1, those that the paper's text numbers
    assert found == {(kind, start): {*range(1, n + 1)} for kind, counts in PAPERS.items() for start, n in counts.items()}


def test_links_without_a_line_lead_to_files():
    paths = re.findall(r"\]\(\.\./([^)#]+)\)", PAGE)
    assert paths and all((ROOT / path).exists() for path in paths)


def test_a_changed_line_is_noticed():
    """Of every link in turn: the piece of code taken out of its line, with the rest of the file as it is."""
    assert len(LINKS) > 200
    for row, m in LINKS:
        lines = TEXTS[m[1]].splitlines()
        lines[int(m[2]) - 1] = lines[int(m[2]) - 1].replace(m[3].replace("\\|", "|"), "other_code")
        found = "\n".join(paper_map.check_links(row, {**TEXTS, m[1]: "\n".join(lines)}))
        assert f"{m[1]}:{m[2]}: expected `{m[3]}`" in found and ("quote the line" in found or "renumber" in found)


def test_a_moved_line_is_noticed():
    for row, m in LINKS:
        lines = TEXTS[m[1]].splitlines()
        lines.insert(0, lines.pop(int(m[2]) - 1))  # to the top of its file
        found = "\n".join(paper_map.check_links(row, {**TEXTS, m[1]: "\n".join(lines)}))
        assert int(m[2]) == 1 or f"{m[1]}:{m[2]}: expected `{m[3]}`, found `" in found


def test_a_renamed_test_and_a_file_that_is_gone_are_noticed():
    tests = {m[3] for _, m in LINKS if m[3].startswith("def test_")}
    renamed = {path: text.replace("def test_", "def test_that_") for path, text in TEXTS.items()}
    found = "\n".join(paper_map.check_links(PAGE, renamed))
    assert len(tests) > 50 and all(f"expected `{test}`, which is gone" in found for test in tests)
    assert len([*paper_map.check_links(PAGE, {})]) == len(LINKS)


def test_a_link_of_another_form_is_noticed():
    for wrong in "[`x.py:9`](../x.py#L8) `x`", "[`x.py:9`](../y.py#L9) `x`", "[`x.py:9`](../x.py#L9)", "[x](../x.py#L1) `x`":
        assert "is not of the form" in "\n".join(paper_map.check_links(wrong, TEXTS))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("# Eq. (4)", "Eq 4"), ('"""Equation (C.6)"""', "Eq C.6"), ("# Eqs. (1) and (B.2)", "Eq B.2"),
        ("# Algorithm C.3", "Algorithm C.3"), ("# Algorithm C.1, line 8", "Line 8"),
        ("x = 1  # lines 13-15", "Line 15"), ("# Theorem 2", "Theorem 2"),
        ("# Corollary C.1", "Corollary C.1"), ("# Proposition 1", "Proposition 1"), ("# Remark 3", "Remark 3"),
        ("# Definition 1", "Definition 1"), ("# Lemma C.1", "Lemma C.1"), ("# Table A.1", "Table A.1"), ("# Table 4", "Table 4"),
        ('x = f"Tables D.5 (MT10) to D.12"', "Table D.12"), ("# Figures 1 (left), 4 and D.11", "Figure D.11"),
        ('def f():\n    """Figure\n    5"""', "Figure 5"), ("# Section 4.4", "Section 4.4"), ("# section 7", "Section 7"),
        ("# Appendix B.6", "Section B.6"), ("# (B.6)", " B.6"), ("# (5.4)", " 5.4"), ("# (4.1, D.12)", " D.12"),
        ("# (D4)", " D4"),
    ],
)  # fmt: skip
def test_numbers_that_the_paper_lacks_are_noticed(text, name):
    (found,) = paper_map.check_names(PAGE, {"ablations/new.py": f"\n{text}\n"})
    line = 2 + text.count("\n    \"\"\"")
    assert found.startswith(f"ablations/new.py:{line}: names {name}, which is not among the paper's")


def test_numbers_that_the_paper_has_are_not():
    text = '''x = "Tables D.5 (MT10, V2), D.6 (MT50, V2) and D.7 (MT50, V1)"  # Eq. (1), (B.1) and B.5; Algorithm C.1, lines 9-12
y = 4.7, 2.6  # Section 2: 3 tasks of 5; Table B.1: 10 seeds, 0.5 and 1.5 M; Theorem 1, 7 times; 12 lines, line by line
"""Sections 4.1 to 4.3 and items (D1) to (D3); an item of 9, D.C. 9 (7.5 s), version 3.0.0 and EnvPool 1.2.5 (2.13.4)."""
'''
    assert [*paper_map.check_names(PAGE, {"ablations/new.py": text})] == []


def test_items_have_a_comment_beside_them_or_a_dagger():
    """With all numbers gone from comments, rows without a dagger are named, and with daggers on all rows those that need none."""
    here = [(n, cells[0]) for n, cells, items in paper_map.rows(PAGE) if paper_map.LINK.search(cells[2])]
    bare = {path: paper_map.BARE.sub("(", paper_map.MENTION.sub(lambda m: "\n" * m[0].count("\n"), text))
            for path, text in TEXTS.items()}  # fmt: skip
    found = "\n".join(paper_map.check_names(PAGE, bare))
    assert all((f"{paper_map.PAGE}:{n}: " in found) == ("†" not in item) for n, item in here)
    page = PAGE.replace("† |", "|").splitlines()
    for n, item in here:
        page[n - 1] = page[n - 1].replace(" |", " † |", 1)
    found = "\n".join(paper_map.check_names("\n".join(page), TEXTS))
    assert all((f"{paper_map.PAGE}:{n}: " in found) == ("†" not in item) for n, item in here)


@pytest.mark.parametrize("seed", range(3))
def test_renumber_follows_the_lines(seed):
    rng, edited = random.Random(seed), {}
    for path, text in TEXTS.items():
        lines = text.splitlines()
        for _ in range(5):
            lines.insert(rng.randrange(len(lines) + 1), "")
        edited[path] = "\n".join(lines)
    assert [*paper_map.check_links(PAGE, edited)]
    page = paper_map.renumber(PAGE, edited)
    assert [*paper_map.check_links(page, edited)] == []
    assert paper_map.renumber(page, edited) == page
    assert paper_map.renumber(page, TEXTS) == PAGE
    assert re.sub(r":\d+`|#L\d+", "", page) == re.sub(r":\d+`|#L\d+", "", PAGE)


def test_renumber_takes_the_nearest_and_leaves_what_is_gone():
    link = "| x | [`a.py:{0}`](../a.py#L{0}) `f(x \\| 1)` |\n"
    texts = {"a.py": "f(x | 1)\n\n\n\n\nf(x | 1)\n\n\nf(x | 1)\n"}  # lines 1, 6 and 9
    for old, new in (1, 1), (2, 1), (4, 6), (6, 6), (7, 6), (8, 9), (99, 9):
        assert paper_map.renumber(link.format(old), texts) == link.format(new)
    assert paper_map.renumber(link.format(4), {"a.py": "f(x)\n"}) == link.format(4)
    assert paper_map.renumber(link.format(4), {}) == link.format(4)


def test_the_commands(tmp_path):
    for path in [*TEXTS, paper_map.PAGE]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)

    def run(*command):
        return subprocess.run([sys.executable, "tools/paper_map.py", *command], cwd=tmp_path, capture_output=True, text=True)

    (tmp_path / "toppo_mt50.py").write_text("# a line more\n" + TEXTS["toppo_mt50.py"])
    done = run("check")
    assert done.returncode == 1 and "run python tools/paper_map.py renumber" in done.stderr and "Traceback" not in done.stderr
    done = run("renumber")
    assert done.returncode == 0 and not done.stderr
    page = (tmp_path / paper_map.PAGE).read_text()
    assert page != PAGE and paper_map.renumber(page, TEXTS) == PAGE
    (tmp_path / "toppo_mt50.py").write_text("")
    done = run("renumber")
    assert done.returncode == 1 and "which is gone from that file" in done.stderr
    assert (tmp_path / paper_map.PAGE).read_text() == page
    done = run()
    assert done.returncode == 1 and "check | renumber" in done.stderr
