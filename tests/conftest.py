"""`pytest --long` also runs the tests that take minutes."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch: test files go side by side
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes, runs with --long only")


def pytest_runtest_setup(item):
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        pytest.skip("takes minutes: run with --long")
