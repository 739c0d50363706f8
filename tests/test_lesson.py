"""docs/lesson.ipynb: it runs, says today what its committed outputs say, and its answers hold."""

import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))
from lesson import LESSON, execute  # noqa: E402

STALE = "the lesson's outputs are not those of its cells today: python tools/lesson.py"


def read():
    return nbformat.read(LESSON, as_version=4)


def code_cells(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def text_of(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def num_pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def answers():
    """The code blocks that are folded away under the exercises."""
    exercises = read().cells[-1].source
    folded = re.findall(r"<details>.*?</details>", exercises, flags=re.S)
    assert len(folded) == len(re.findall(r"^\*\*\d\.\*\*", exercises, flags=re.M)) >= 5
    return [code for part in folded for code in re.findall(r"```python\n(.*?)```", part, re.S)]


@pytest.fixture(scope="module")
def executed():
    """The lesson as run from docs/, with the answers as cells at its end.

    Where MPLBACKEND says Agg, as for machines without a screen, the pictures must appear, too.
    """
    notebook = read()
    for i, code in enumerate(answers()):
        notebook.cells.append(nbformat.v4.new_code_cell(code, id=f"answer-{i}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        return code_cells(execute(notebook, LESSON.parent))


def test_the_lesson_is_short_and_has_its_outputs():
    notebook = read()
    assert 12 <= len(notebook.cells) <= 15
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    for name in ("two-drawn", "pcgrad-drawn", "dumps-drawn"):
        assert num_pictures(cells[name]) == 1
    for name, cell in cells.items():
        assert name == "setup" or text_of(cell), name


def test_it_says_what_is_committed(executed):
    for name, cell in code_cells(read()).items():
        assert text_of(executed[name]) == text_of(cell), STALE
        assert num_pictures(executed[name]) == num_pictures(cell), STALE


def test_the_answers_hold(executed):
    """Their assertions ran, as an error in a cell would have been raised."""
    names = [name for name in executed if name.startswith("answer-")]
    assert len(names) >= 5
    assert all(executed[name].execution_count for name in names)


def test_key_numbers(executed):
    """By hand: the mean is 4.7° from the long gradient, FairGrad halves the angle of 60°."""
    text = text_of(executed["two-drawn"])
    assert "FairGrad: w = [0.816 0.082], length of d 1.414, 30.0° from g_1 and 30.0°" in text
    assert "55.3° from g_1 and 4.7° from g_2" in text  # tan = sin 60° / (10 + cos 60°)
    lines = text_of(executed["theorem-shown"]).splitlines()
    rows = [line.split() for line in lines[2:-1]]
    assert len(rows) == 4
    for _, length, change, alpha_2, mean in rows:
        assert (length, change) == ("2.449489743", "0.000000000")
    assert float(alpha_2) < 0.9 and float(mean) < 0.9
    popart = text_of(executed["popart-shown"])
    assert "relative: 0.0000" in popart
    assert (
        "FairGrad: length of d 1.7321 before PopArt and 1.7321 after it, d turned by 0.0" in popart
    )
    assert "relative difference: 0.00000" in text_of(executed["vmap-shown"])
    assert "sigma^2: 0.000000 off" in text_of(executed["dumps-drawn"])


def test_it_explains_the_functions_that_train():
    """Imported, not copied; what section 3 quotes stands in the script."""
    source = "\n".join(cell.source for cell in read().cells)
    for name in ("gram", "per_task_gradients", "pcgrad_weights", "PopArt", "solve_fairgrad"):
        assert re.search(rf"^from (toppo_mt50|fairgrad_solver) import .*\b{name}\b", source, re.M)
        assert not re.search(rf"^(def|class) {name}\b", source, re.M)
    script = (ROOT / "toppo_mt50.py").read_text()
    (quoted,) = re.findall(r"```python\n(shared = .*?)```", source, flags=re.S)
    assert all(f"    {line}\n" in script for line in quoted.splitlines())


@pytest.mark.parametrize("folder", [".", "docs"])
def test_the_first_cell_finds_the_repository(folder, monkeypatch):
    monkeypatch.chdir(ROOT / folder)
    names = run_setup(monkeypatch)
    assert names["root"] == ROOT and names["ran"] == []


def test_the_first_cell_fetches_the_repository_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "toppo").mkdir()
    (tmp_path / "toppo/requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    monkeypatch.chdir(tmp_path)
    names = run_setup(monkeypatch)
    clone, install = names["ran"]
    assert names["root"] == tmp_path / "toppo"
    assert clone[:2] == ["git", "clone"] and clone[-2:] == [names["REPOSITORY"], "toppo"]
    assert install[1:5] == ["-m", "pip", "install", "-q"]
    assert {word.split("==")[0] for word in install[5:]} == {
        "metaworld",
        "mujoco",
        "gymnasium",
        "tyro",
    }
    badge = names["REPOSITORY"].removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{badge}/blob/main/docs/lesson.ipynb"
    assert link in read().cells[0].source


def run_setup(monkeypatch):
    """The first code cell's names, with the commands that it would have run as ran."""
    ran = []
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command))
    monkeypatch.setattr("matplotlib.pyplot.rcParams", {})
    monkeypatch.setattr("numpy.set_printoptions", lambda **options: None)
    names = {"ran": ran}
    source = code_cells(read())["setup"].source.replace("%matplotlib inline\n", "")
    exec(source, names)
    return names
