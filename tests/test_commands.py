"""Every command in the README, CONTRIBUTING.md and docs/: docs/commands.md says which test runs it, or why none does."""

import re
import shlex
import subprocess
import sys

import pytest
from scripts import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "README.md"]
LIST = ROOT / "docs" / "commands.md"
PROGRAMS = r"(python|pip|diff|ruff|mypy|tensorboard|docker|\.ci/run)\b"


def commands(text):
    """The commands of a page: lines of bash blocks and of indented blocks, and code spans that begin with a program."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) + re.findall(r"(?:\n    [^\n]+)+", text):
        found += [line.split("  #")[0].strip() for line in block.splitlines()]
    spans = re.sub(r"```.*?```", "", text, flags=re.S)
    found += [re.sub(r"\s+", " ", span).strip() for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", spans)]
    return [c for c in found if re.match(PROGRAMS, c) and len(c.split()) > 1 or c == ".ci/run"]


def listed():
    """{command: what docs/commands.md says of it}."""
    return dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", LIST.read_text(), flags=re.M))


def test_the_list_is_complete():
    written = {c for page in PAGES if page != LIST for c in commands(page.read_text())}
    assert written == listed().keys(), (sorted(written - listed().keys()), sorted(listed().keys() - written))


@pytest.mark.parametrize("command", listed())
def test_each_is_run_by_the_test_that_is_named_or_has_a_reason(command):
    where = listed()[command]
    if where == "here":
        arguments = shlex.split(command.replace("python ", f"{sys.executable} ", 1))
        process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == (1 if command.startswith("diff") else 0), process.stderr
        return
    if where.startswith("not run: "):
        return
    path, name = re.fullmatch(r"`(tests/\w+\.py)::(\w+)`.*", where).groups()
    text = (ROOT / path).read_text()
    assert f"def {name}(" in text, f"{path} has no {name}"
    program = re.search(r"([\w/]+\.py|tensorboard)", command)  # which the test's file must start
    assert program and program[1].rsplit("/")[-1].removesuffix(".py") in text, f"{path} does not mention {program}"
