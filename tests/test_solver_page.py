"""docs/solver.md: its code runs, its numbers are those of results/fairgrad_solver.md."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import fairgrad_solver

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/solver.md").read_text()
RESULTS = (ROOT / "results/fairgrad_solver.md").read_text()
FIRST, TORCHJD = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def test_the_first_example():
    names = {}
    exec(FIRST, names)
    np.testing.assert_allclose(names["J"] @ names["d"] * names["solution"].weights, 1, rtol=1e-9)


@pytest.fixture
def torchjd():
    pytest.importorskip("torchjd.aggregation")
    names = {}
    exec(TORCHJD, names)
    return names


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_weighting_agrees_with_torchjds(torchjd, dtype):
    """Where scipy converges, which is where the gradients have about one length."""
    from torchjd.aggregation import FairGrad, FairGradWeighting

    generator = torch.Generator().manual_seed(0)
    J = torch.randn(8, 100, dtype=dtype, generator=generator) / 10
    gramian = J @ J.T
    weights = torchjd["NewtonFairGrad"]()(gramian)
    assert weights.dtype == dtype
    theirs = FairGradWeighting(alpha=1.0)(gramian)
    torch.testing.assert_close(weights, theirs, rtol=1e-5, atol=0)
    d = torchjd["aggregator"](J)
    torch.testing.assert_close(d, FairGrad(alpha=1.0)(J), rtol=1e-4, atol=1e-5)
    assert d.norm().item() == pytest.approx(np.sqrt(8), rel=1e-5)


def test_the_weighting_is_invariant_where_torchjds_is_not(torchjd):
    from torchjd.aggregation import FairGrad

    J = torch.eye(8, dtype=torch.float64)
    scaled = J.clone()
    scaled[-1] *= 1e-6  # in a direction that no longer gradient shares
    ours = torchjd["aggregator"]
    torch.testing.assert_close(ours(scaled), ours(J), rtol=1e-7, atol=1e-9)
    assert (FairGrad(alpha=1.0)(scaled) - ours(J)).norm() > 0.1


COLUMNS = ["ours", "scipy (FairGrad)", "torchjd FairGrad", "torchjd Nash-MTL"]


def tables(text):
    """[[{column: cell}]] of the Markdown tables, each row's name under ''."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        header, _, *rows = [
            [cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()
        ]
        header = header if header[0] == "" or len(header) == len(rows[0]) else ["", *header]
        found.append([dict(zip(header, row)) for row in rows])
    return found


def test_the_table_is_that_of_the_results():
    _, *k_50 = RESULTS.split("### K = 50")[1].split("### Beyond")[0].split("Median milliseconds")
    milliseconds, residuals, _ = tables(k_50[0])
    captured, captured_residuals, _ = tables(
        RESULTS.split("### results/fairgrad_solver_captured_grams.npz")[1].split("## Rob")[0]
    )
    both = [*zip(milliseconds, residuals), *zip(captured[1:], captured_residuals[1:])]
    expected = [
        [time[""], *(f"{time[c]} ({residual[c].split(' ')[0]})" for c in COLUMNS)]
        for time, residual in both
    ]
    (shown,) = tables(PAGE)
    assert [list(row.values()) for row in shown] == expected


NASH_MTL = """
import sys, warnings
import torch

class NoEcos:  # as after pip install cvxpy
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ecos":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoEcos())
warnings.simplefilter("ignore")
from torchjd.aggregation import _nash_mtl

def weights():
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    return _nash_mtl.NashMTL(4, max_norm=0.0).weighting(rows).tolist()

try:
    weights()
except ImportError as error:
    print(type(error).__name__)
_nash_mtl._NashMTLWeighting._REQUIRED_DEPS = ["numpy", "cvxpy"]  # the authors' code has no check
print(weights())
"""


def test_nash_mtl_without_ecos():
    """torchjd refuses; the code that it has from the authors gives equal weights."""
    pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("cvxpy")
    process = subprocess.run([sys.executable, "-c", NASH_MTL], capture_output=True, text=True)
    refusal, weights = process.stdout.splitlines()[-2:]
    assert refusal.endswith("Error") and weights == "[1.0, 1.0, 1.0, 1.0]", process.stderr


def test_the_versions_are_those_of_the_requirements():
    requirements = (ROOT / "requirements-dev.txt").read_text()
    (version,) = re.findall(r"^torchjd\S*==(\S+)", requirements, flags=re.M)
    assert set(re.findall(r"torchjd (\d[\d.]+\d)", PAGE)) == {version}


def test_what_pip_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["py-modules"] == ["fairgrad_solver"]
    source = Path(fairgrad_solver.__file__).read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, flags=re.M)) - {
        "logging",
        "typing",
    }
    assert imported == set(project["project"]["dependencies"])
