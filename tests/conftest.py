"""`pytest --long` also runs the tests that take minutes."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch: test files go side by side
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

# These go first, so that none is left to one process at the end, with the others idle
LONG_FILES = ["faults", "fairgrad_solver", "runs", "sweep", "benchmarks", "envpool", "commands"]


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes, runs with --long only")
    config.addinivalue_line("markers", "short: another test does the same for longer with --long")


def pytest_runtest_setup(item):
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        pytest.skip("takes minutes: run with --long")
    if item.get_closest_marker("short") and item.config.getoption("--long"):
        pytest.skip("part of a longer test, which --long runs")


def pytest_collection_modifyitems(items):
    order = {f"test_{name}": i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
