"""Pages: what stands in slots comes from results/, and links lead somewhere."""

import re
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scripts import ROOT

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "paper")]
import fill  # noqa: E402

PAGES = ["README.md", "CONTRIBUTING.md", "results/README.md"]
PAGES += [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]


@cache
def headings(page):
    """The anchors that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_slots_hold_what_results_say(page):
    text = (ROOT / page).read_text()
    assert fill.filled(text) == text, f"python tools/fill.py {page}"
    assert text.count("<!--= ") == text.count("<!--/-->") == len(fill.SLOT.findall(text))


def test_a_changed_digit_in_any_slot_is_found():
    text = (ROOT / "docs/results.md").read_text()
    slots = list(fill.SLOT.finditer(text))
    assert len(slots) > 20
    values = {slot[0]: eval(slot[2], vars(fill)) for slot in slots}
    for slot in slots:
        at = next(i for i in range(*slot.span(4)) if text[i].isdigit())
        changed = text[:at] + str(9 - int(text[at])) + text[at + 1 :]
        again = fill.SLOT.search(changed, slot.start())
        assert again[4].strip() != values[slot[0]], slot[2]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    page = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in headings(file), target


def test_helpers_agree_with_the_files():
    """fill.py's numbers, computed once more from evals.csv."""
    folders = sorted((ROOT / "results/mt50").glob("no_clip_vanilla_mtppo__*"))
    evals = [pd.read_csv(folder / "evals.csv").query("step == 4_000_000") for folder in folders]
    rates = [100 * np.sort(x.success_rate) for x in evals]
    which = ("Vanilla MT-PPO, no value clip", "MT50", 4)
    assert fill.each(*which) == ", ".join(f"{x.mean():.1f}" for x in rates)
    assert fill.mean(*which, 30) == f"{np.mean([x[:30].mean() for x in rates]):.1f}"
    assert fill.one(f"mt50/{folders[-1].name}", 4) == f"{rates[-1].mean():.1f}"
    assert fill.each("TOPPO", "MT50", 99) == fill.mean("TOPPO", "MT50", 99) == "–"
