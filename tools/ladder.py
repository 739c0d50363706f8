"""Each script is its parent plus one change: python tools/ladder.py carry | docs

carry         takes the edits since the last commit from every parent to its children; run it
              before you commit. Where a child has put something else in the edited lines' place,
              it leaves git's conflict marks in the child: resolve them, then carry again.
carry A B     takes A's edits to B alone, such as PopArt's from ln_popart to popart.
docs          renews the diffs in docs/ladder.md, below its lines <!-- diff PARENT CHILD -->.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
TREE = {  # parents stand before their children
    "vanilla_mtppo": ["ln", "popart", "fairgrad", "vanilla_envpool"],
    "ln": ["ln_popart", "ln_fairgrad"],
    "ln_popart": [
        "ln_popart_fairgrad",
        "ln_popart_pcgrad_pcgrad",
        "ln_popart_cagrad_cagrad",
        "symmetric_ln_popart",
    ],
    "ln_popart_fairgrad": ["toppo_mt50", "ln_popart_fairgrad_fairgrad"],
    "toppo_mt50": ["toppo_popart_ema", "toppo_envpool"],
    "popart": ["popart_fairgrad"],
}
EDGES = [(parent, child) for parent, children in TREE.items() for child in children]


def path(name):
    name = f"{Path(name).stem}.py"
    found = [file for file in (ROOT / name, ROOT / "ablations" / name) if file.exists()]
    return found[0] if found else sys.exit(f"there is no script {name}")


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)


def carry(edges):
    # A parent's text when it was carried last, so that nothing is carried twice before a commit
    head = git("rev-parse", "HEAD").stdout
    memory = ROOT / git("rev-parse", "--git-path", "ladder.json").stdout.strip()
    carried = json.loads(memory.read_text()) if memory.exists() else {}
    if carried.get("head") != head:
        carried = {"head": head}

    for parent, child in edges:
        edited = path(parent).read_text()
        if "\n<<<<<<< " in edited:
            sys.exit(f"{parent}: resolve its conflicts, then carry again")
        edge = f"{parent} {child}"
        committed = git("show", f"HEAD:./{path(parent).relative_to(ROOT)}").stdout
        base = carried.get(edge, committed or edited)  # a parent not yet committed has no edits
        if base == edited:
            continue

        with TemporaryDirectory() as folder:
            base_file = Path(folder, "base")
            base_file.write_text(base)
            labels = ["-L", child, "-L", "before", "-L", parent]
            merged = git("merge-file", *labels, path(child), base_file, path(parent))
        if merged.stderr:
            sys.exit(merged.stderr)
        carried[edge] = edited
        memory.write_text(json.dumps(carried))
        conflicts = f": {merged.returncode} conflicts" if merged.returncode else ""
        print(f"{parent} -> {child}{conflicts}")


def diff(parent, child):
    """The hunks between two scripts, but for the docstrings at their tops."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, "parent"), Path(folder, "child")]
        for file, name in zip(files, (parent, child)):
            text = path(name).read_text()
            file.write_text(text.replace(ast.get_docstring(ast.parse(text), clean=False), "", 1))
        options = ["--no-index", "--no-color", "--no-ext-diff", "--diff-algorithm=myers", "-U1"]
        _, *hunks = git("diff", *options, *files).stdout.split("\n@@ ")
    # Line numbers go, the name of the function that a hunk is in stays
    return [re.sub(r"^\S+ \S+ @@", "@@", hunk).rstrip() for hunk in hunks]


def docs(page):
    """The text of docs/ladder.md with the diffs as they are now."""

    def renewed(found):
        return f"{found[1]}```diff\n" + "\n".join(diff(found[2], found[3])) + "\n```"

    return re.sub(r"(<!-- diff (\S+) (\S+) -->\n)```diff\n.*?\n```", renewed, page, flags=re.S)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["carry"]:
            carry(EDGES)
        case ["carry", parent, child]:
            carry([(parent, child)])
        case ["docs"]:
            page = ROOT / "docs/ladder.md"
            page.write_text(docs(page.read_text()))
        case _:
            sys.exit(__doc__)
