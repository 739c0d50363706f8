"""What every test process needs, and which files go first."""

import functools
import multiprocessing
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and PyTorch are loaded

import metaworld  # noqa: E402
import pytest  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The long ones, so that none is left to one process at the end with the others idle
FIRST = ["test_running", "test_environments", "test_plain_update", "test_fairgrad_solver"]
make_goals = functools.cache(metaworld.MT1)


def pytest_collection_modifyitems(items):
    order = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))


@pytest.fixture
def fork(monkeypatch):
    """fork(module) makes a script's workers start at once, with what is loaded here."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(metaworld, "MT1", make_goals)
    yield lambda module: monkeypatch.setattr(module, "get_context", lambda _: context)
    for process in multiprocessing.active_children():
        process.kill()
