"""Holds docs/paper_map.md to the code: python tools/paper_map.py check.

The page lists all that the paper numbers, with links [`FILE`](../FILE) and, behind a link, names of
what is in that file: `policy_loss`, `PopArt.update`, `OBS_DIM = 39`, `--num-steps 10_000`, and
`f(tol=1e-10)` for a function's default. `check` wants every file and name to be there, every quoted
value to hold, and each number of the paper in the scripts' comments to be on the page.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/paper_map.md"
SCRIPTS = [".", "ablations", "paper", "benchmarks"]  # where comments name the paper's numbers
LINK = re.compile(r"\[`([^`]+)`\]\(\.\./([^)]+)\)((?:,? `[^`]+`)*)")

KINDS = (
    "Eq|Equation|Algorithm|Line|Theorem|Corollary|Lemma|Proposition|Definition|Remark|Table|Figure"
    "|Section|Appendix|Item"
)
NUMBER = r"(?:[A-D]\.|\d\.|D)?\d+\b(?![.,]\d)"  # 3, C.2, 4.1, D1
NOTE = rf"\s\((?!{NUMBER}\))[^()]*\)"  # Tables D.5 (MT10) to D.7
FURTHER = rf"(?:\)?(?:{NOTE})?(?:,? and |, | or | to |[-–])\(?{NUMBER})*"
MENTION = re.compile(rf"\b((?i:{KINDS}))(s)?\.?\s+\(?({NUMBER}(?(2){FURTHER}))")
BARE = re.compile(  # B.2; (4.1); (4.1, B.5)
    r"(?<![\w.])([A-D]\.\d+)\b|(?<![\w(\[])\((D\d|[1-6]\.\d)(?=\)|, [A-D]\.)"
)


# --- The paper's numbers


def mentions(text):
    """[(position, kind, number)] of the paper's numbers in a text; of a bare B.2 the kind is None.

    Code has no such words before its numbers and need not be told apart from comments.
    """
    found = []
    for m in MENTION.finditer(text):
        kind = {"Equation": "Eq", "Appendix": "Section"}.get(m[1].capitalize(), m[1].capitalize())
        last = 0
        for to, prefix, i in re.findall(
            r"( to |[-–])?\(?((?:\w\.|D)?)(\d+)", re.sub(NOTE, "", m[3])
        ):
            first = last + 1 if to else int(i)  # Tables D.5 to D.7; lines 9-12
            last = int(i)
            found += [(m.start(), kind, f"{prefix}{j}") for j in range(first, last + 1)]
    rest = MENTION.sub(lambda m: " " * len(m[0]), text)
    return found + [(m.start(), None, m[1] or m[2]) for m in BARE.finditer(rest)]


def rows(page):
    """(line of the page, cells, {(kind, number)} that the row is about) of each row.

    A row about lines of an algorithm is about these alone.
    """
    for n, line in enumerate(page.splitlines(), 1):
        if not line.startswith("|") or line.startswith(("| item |", "|---")):
            continue
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        items = {(kind, number) for _, kind, number in mentions(cells[0]) if kind}
        yield n, cells, {item for item in items if item[0] == "Line"} or items


def check_numbers(page, texts):
    """texts: {path: text} of the Python files."""
    known = set().union(*(items for *_, items in rows(page)))
    known |= {(None, number) for _, number in known}
    for path, text in texts.items():
        if str(Path(path).parent) not in SCRIPTS:
            continue
        for position, kind, number in mentions(text):
            if (kind, number) not in known:
                line = text.count("\n", 0, position) + 1
                yield (
                    f"{path}:{line}: names {kind or ''} {number}, which is not among the paper's "
                    f"in {PAGE}: correct the comment"
                )


# --- The names behind links


@cache
def definitions(source):
    """{name: node} of functions, classes and constants; what is in a class as Args.seed."""
    found = {}
    for node in ast.parse(source).body:
        found[name_of(node)] = node
        if isinstance(node, ast.ClassDef):
            found.update({f"{node.name}.{name_of(child)}": child for child in node.body})
    return found


def name_of(node):
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return getattr(node, "name", None)


def wrong(name, found):
    """What is wrong with a name of the page, or None. found: the definitions in its file."""
    if name.startswith("--"):
        return wrong_flag(name, found)
    called, _, arguments = name.partition("(")
    called, _, value = called.partition(" = ")
    if called not in found:
        return "expected a function, class or constant, which is gone: name what does this now"
    if value:
        return differs(value, getattr(found[called], "value", None))
    if arguments:
        quoted = ast.parse(name, mode="eval").body.keywords
        defaults = defaults_of(found[called])
        found_wrong = [differs(ast.unparse(x.value), defaults.get(x.arg)) for x in quoted]
        return next(filter(None, found_wrong), None)
    return None


def wrong_flag(words, found):
    """--tasks has no value to hold; --clip-vloss and --no-clip-vloss say whether it is on."""
    flag, *values = words.removeprefix("--").split()
    name = "Args." + flag.replace("-", "_")
    on = name in found
    field = found.get(name, found.get(name.replace(".no_", ".")))
    if field is None:
        return "expected a flag, which is gone"
    if isinstance(literal(field.value), bool):
        return differs(str(on), field.value)
    if len(values) > 1:
        return differs(f"({', '.join(values)})", field.value)
    return differs(values[0], field.value) if values else None


def differs(quoted, node):
    """node: the expression that should have the quoted value."""
    if node is None or value_of(quoted) != literal(node):
        return f"found {ast.unparse(node) if node else 'no value'}"
    return None


def literal(node):
    return value_of(ast.unparse(node))


def value_of(text):
    """The value of a literal, or the text where it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def defaults_of(function):
    """{parameter: default}."""
    parameters = function.args
    with_default = parameters.args[len(parameters.args) - len(parameters.defaults) :]
    names = [x.arg for x in with_default + parameters.kwonlyargs]
    return dict(zip(names, parameters.defaults + parameters.kw_defaults))


def check_names(page, texts):
    for n, line in enumerate(page.splitlines(), 1):
        for shown, path, names in LINK.findall(line):
            if shown != path:
                yield f"{PAGE}:{n}: {shown} leads to {path}: write the same twice"
            if path not in texts and (path.endswith(".py") or not (ROOT / path).exists()):
                yield f"{PAGE}:{n}: {path}: expected a file, which is gone"
                continue
            for name in re.findall("`([^`]+)`", names):
                problem = wrong(name, definitions(texts.get(path, "")))
                if problem:
                    yield f"{PAGE}:{n}: {path} `{name}`: {problem}"
    for n, cells, _ in rows(page):
        rest = LINK.sub("", " ".join(cells[2:]))
        if "`" in rest or "](../" in rest:
            yield f"{PAGE}:{n}: expected names behind the link [`FILE`](../FILE) to theirs: {rest}"


def load():
    folders = [*SCRIPTS, "tests", "tools"]
    paths = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def problems(page, texts):
    return [*check_names(page, texts), *check_numbers(page, texts)]


if __name__ == "__main__":
    if sys.argv[1:] != ["check"]:
        sys.exit(__doc__)
    sys.exit("\n".join(problems((ROOT / PAGE).read_text(), load())) or None)
