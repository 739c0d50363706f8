"""Holds docs/paper_map.md to the code: python tools/paper_map.py check | renumber.

The page lists all that the paper numbers, with links [`FILE:LINE`](../FILE#LLINE) and a piece of the line's code behind each.
`check` wants a line to hold its piece, each number of the paper in the scripts' comments and strings to be on the list, and each
item to be named beside a line that its row points to, unless the item has a dagger. `renumber`, after an edit that moved lines,
finds the pieces again and puts the new numbers into the page: of several places the one nearest to the old number.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/paper_map.md"
SCRIPTS = ".", "ablations", "paper", "benchmarks"  # where comments and strings name the paper's numbers
BESIDE = 5  # lines between a comment and what it is about
LINK = re.compile(r"\[`([^`]+):(\d+)`\]\(\.\./\1#L\2\) `([^`]+)`")
KINDS = "Eq|Equation|Algorithm|Line|Theorem|Corollary|Lemma|Proposition|Definition|Remark|Table|Figure|Section|Appendix|Item"
NUMBER = r"(?:[A-D]\.|\d\.|D)?\d+\b(?![.,]\d)"
NOTE = rf"\s\((?!{NUMBER}\))[^()]*\)"
MENTION = re.compile(rf"\b((?i:{KINDS}))(s)?\.?\s+\(?({NUMBER}(?(2)(?:\)?(?:{NOTE})?(?:,? and |, | or | to |[-–])\(?{NUMBER})*))")
BARE = re.compile(r"(?<![\w.])([A-D]\.\d+)\b|(?<![\w(\[])\((D\d|[1-6]\.\d)(?=\)|, [A-D]\.)")  # B.2; (4.1); (4.1, B.5)


def mentions(text):
    """[(position, kind, number)] of the paper's numbers in a text; the kind of a bare B.2 or (4.1) is None."""
    found, last = [], 0
    for m in MENTION.finditer(text):
        kind = {"Equation": "Eq", "Appendix": "Section"}.get(m[1].capitalize(), m[1].capitalize())
        for to, prefix, i in re.findall(r"( to |[-–])?\(?((?:\w\.|D)?)(\d+)", re.sub(NOTE, "", m[3])):
            first, last = last + 1 if to else int(i), int(i)  # Tables D.5 (MT10) to D.7; lines 9-12
            found += [(m.start(), kind, f"{prefix}{j}") for j in range(first, last + 1)]
    rest = MENTION.sub(lambda m: " " * len(m[0]), text)
    return found + [(m.start(), None, m[1] or m[2]) for m in BARE.finditer(rest)]


@cache
def named(source):
    """[(line, lines it is beside, kind, number)] of a script's comments and strings: a docstring is beside all that it is of.
    Code has no words before its numbers and need not be told apart."""
    tree, scopes = ast.parse(source), {}
    for node in [tree, *tree.body, *(inner for outer in tree.body if isinstance(outer, ast.ClassDef) for inner in outer.body)]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring, whole = node.body[0], range(getattr(node, "lineno", 1), getattr(node, "end_lineno", 10**6) + 1)
            scopes.update(dict.fromkeys(range(docstring.lineno, (docstring.end_lineno or 0) + 1), whole))
    found = [(source.count("\n", 0, position) + 1, *item) for position, *item in mentions(source)]
    return [(line, scopes.get(line, range(line - BESIDE, line + BESIDE + 1)), *item) for line, *item in found]


def rows(page):
    """(line of the page, cells, {(kind, number)} that the row is about) of each row; of an algorithm's lines, the lines alone."""
    for n, line in enumerate(page.splitlines(), 1):
        if line.startswith("|") and not line.startswith(("| item |", "|---")):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            items = {(kind, number) for _, kind, number in mentions(cells[0]) if kind}
            yield n, cells, {item for item in items if item[0] == "Line"} or items


def links(page, texts):
    """(line of the page, match, numbers of the lines of the file that hold the piece) of each link."""
    for n, line in enumerate(page.splitlines(), 1):
        for m in LINK.finditer(line):
            piece, lines = m[3].replace("\\|", "|"), texts.get(m[1], "").splitlines()
            yield n, m, [i for i, text in enumerate(lines, 1) if piece in text]


def check_links(page, texts):
    for n, line in enumerate(page.splitlines(), 1):
        if line.count("#L") != len(LINK.findall(line)):
            yield f"{PAGE}:{n}: a link is not of the form [`FILE:LINE`](../FILE#LLINE) `CODE`, with one number: write it so"
    for n, m, holders in links(page, texts):
        if not holders:
            yield f"{PAGE}:{n}: {m[1]}:{m[2]}: expected `{m[3]}`, which is gone from that file: quote the line that does this now"
        elif int(m[2]) not in holders:
            holds = dict(enumerate(texts[m[1]].splitlines(), 1)).get(int(m[2]), "").strip()
            yield f"{PAGE}:{n}: {m[1]}:{m[2]}: expected `{m[3]}`, found `{holds}`: run python tools/paper_map.py renumber"


def check_names(page, texts):
    known = set().union(*(items for *_, items in rows(page)))
    known |= {(None, number) for _, number in known}
    for path in texts:
        for line, _, kind, number in named(texts[path]) if str(Path(path).parent) in SCRIPTS else ():
            if (kind, number) not in known:
                yield f"{path}:{line}: names {kind or ''} {number}, which is not among the paper's in {PAGE}: correct the comment"
    for n, cells, items in rows(page):
        there = [(m[1], int(m[2])) for m in LINK.finditer(cells[2]) if m[1] in texts]
        beside = {(k, number) for path, at in there for _, lines, k, number in named(texts[path]) if at in lines}
        absent = [" ".join(item) for item in items if not {item, (None, item[1])} & beside]
        if there and absent and "†" not in cells[0]:
            yield f"{PAGE}:{n}: {absent[0]} is in no comment beside the lines linked there: name it, or add a † to the row"
        if there and not absent and "†" in cells[0]:
            yield f"{PAGE}:{n}: {cells[0]}: now named beside a line linked there: take the † away"


def load():
    folders = *SCRIPTS, "tests", "tools"
    return {str(p.relative_to(ROOT)): p.read_text() for folder in folders for p in sorted((ROOT / folder).glob("*.py"))}


def renumber(page, texts):
    lines = page.splitlines()
    for n, m, holders in links(page, texts):
        if holders:
            line = min(holders, key=lambda i: abs(i - int(m[2])))
            lines[n - 1] = lines[n - 1].replace(m[0], f"[`{m[1]}:{line}`](../{m[1]}#L{line}) `{m[3]}`")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] not in (["check"], ["renumber"]):
        sys.exit(__doc__)
    page, texts = (ROOT / PAGE).read_text(), load()
    if sys.argv[1] == "renumber":
        page = renumber(page, texts)
        (ROOT / PAGE).write_text(page)
    problems = list(check_links(page, texts))
    if sys.argv[1] == "check" and not problems:  # comments are looked for beside lines, which must be right for that
        problems = list(check_names(page, texts))
    sys.exit("\n".join(problems) or None)
