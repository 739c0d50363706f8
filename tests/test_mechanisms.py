"""paper/mechanisms.py on the committed dumps: its files, and the numbers in its sentences."""

import re
import sys
from importlib import import_module

import numpy as np
import pytest
from scripts import ROOT
from test_paper import r

MT10 = ROOT / "results/mt10"
REMAKE = "the dumps have changed: python paper/mechanisms.py results/mt10 --out docs/figures"
NAMES = ["ln", "popart", "fairgrad", "pcgrad"]
mechanisms = import_module("mechanisms")


@pytest.fixture(scope="module")
def dumps():
    return mechanisms.dumps_at_shared_steps(r.load_runs([MT10]))


@pytest.fixture
def make(monkeypatch):
    def make(*words):
        monkeypatch.setattr(sys, "argv", ["mechanisms.py", *map(str, words)])
        mechanisms.main()

    return make


def test_writes_the_committed_figures(make, tmp_path):
    """Twice the same bytes, and all words and numbers of the figures that are committed."""
    for folder in ("a", "b"):
        make(MT10, "--out", tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(f"mechanism_{name}.{end}" for name in NAMES for end in ("png", "svg"))
    for name in files:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes(), name
        assert len(data) < 150_000
        committed = ROOT / "docs/figures" / name
        assert committed.exists()
        if name.endswith(".svg"):
            assert words_of(committed) == words_of(tmp_path / "a" / name), REMAKE
            assert "<dc:date>" not in data.decode()


def words_of(svg):
    """All texts, which matplotlib writes as comments beside their shapes."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(), flags=re.S)


def text_of(figure):
    return " ".join(figure._supxlabel.get_text().replace("\n", " ").split())


@pytest.mark.parametrize("name", NAMES)
def test_says_that_it_is_one_seed(name, dumps):
    text = text_of(mechanisms.FIGURES[name](dumps, 0))
    r.plt.close("all")
    assert text.endswith(" seed 1): n = 1, an illustration.") and "nan" not in text


GRAM = np.array([[1.0, -0.3, 0.0], [-0.3, 9.0, 0.0], [0.0, 0.0, 100.0]])  # norms 1, 3, 10


@pytest.fixture
def small(dumps):
    """Two dumps of three tasks: PopArt brings norms together in the first only."""
    dump = dumps["ln_popart"][0]._replace(tasks=["a", "b", "c"], actor_gram=GRAM)
    follows_first = np.array([1.0, 0.0, 0.0])
    first = dump._replace(critic_gram=GRAM, sigma=np.array([1.0, 1.0, 2.0]))
    first = first._replace(actor_weights=follows_first)
    second = first._replace(step=2_000_000, sigma=np.array([2.0, 1.0, 1.0]))
    orthogonal = [x._replace(critic_gram=np.diag(GRAM.diagonal())) for x in (first, second)]
    steps = [first, second]
    return {"vanilla_mtppo": steps, "ln": orthogonal, "ln_popart": steps, "toppo_mt50": steps}


@pytest.mark.parametrize(
    "name, said",
    [
        # cosines -0.1, 0, 0, and 0 three times
        ("ln", "is 0.00 instead of −0.03, its mean size 0.00 instead of 0.03"),
        ("ln", "(they are lower in 0 and in 2 of 2 dumps), and 0 pairs are nearly parallel"),
        # norms 1, 3, 40 before and 1, 3, 10 after; then 4, 3, 10, and 1, 3, 10 after
        ("popart", "from 40 to 10 times the smallest"),
        ("popart", "in 1 of 2 dumps (not at 2 M steps, from 3 to 10)."),
        # 10 / 14; by FairGrad nearly equal lengths
        ("fairgrad", "The largest share goes from 71 % to 34 %"),
        # one of three pairs; with the mean (0.7, 8.7, 100) / norms / 10.4, with g_1 alone 1, -0.1
        ("pcgrad", "33 % point against each other; the mean of all points against 0 of 3 tasks"),
        ("pcgrad", "PCGrad's step against 1 (lowest −0.10, highest 1.00)."),
    ],
)
def test_sentences_have_the_numbers_of_a_small_example(name, said, small):
    text = text_of(mechanisms.FIGURES[name](small, 0)).replace("\N{NO-BREAK SPACE}", " ")
    r.plt.close("all")
    assert said in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_zero(name, small):
    gram = GRAM * np.array([1.0, 1.0, 0.0]) * np.array([1.0, 1.0, 0.0])[:, None]
    zero = {
        script: [dump._replace(critic_gram=gram, actor_gram=gram) for dump in side]
        for script, side in small.items()
    }
    text = text_of(mechanisms.FIGURES[name](zero, 0))
    r.plt.close("all")
    assert "nan" not in text and "inf" not in text


def test_without_dumps_it_says_how_to_make_some(make, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        make(ROOT / "results/mt10/earlier__vanilla_mtppo__1", "--out", tmp_path)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert "no gradient dumps" in err and "python ablations/ln.py" in err
