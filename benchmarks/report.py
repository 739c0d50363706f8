"""What the benchmarks share: flags, clocks, and how their pages begin."""

import os
import platform
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
SIZES = ["MT10", "MT50"]


def parser(doc: str | None, page: str, repetitions: int) -> ArgumentParser:
    """A parser with the flags that all have. page: the file in results/ that is written."""
    found = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found.add_argument("--benchmark", nargs="+", choices=SIZES, default=SIZES)
    found.add_argument("--repetitions", type=int, default=repetitions)
    found.add_argument("--device", choices=["cpu", "cuda"], default=device)
    found.add_argument("--threads", type=int, default=0, help="PyTorch's; 0: its default")
    path = ROOT / "results" / page
    found.add_argument("--out", type=Path, default=path, help="the Markdown file to write")
    found.add_argument("--no-write", action="store_true", help="print only")
    return found


def now(device: str) -> float:
    """Seconds, when the GPU has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(
    runs: Mapping[str, Callable[[], object]], repetitions: int, device: str
) -> dict[str, np.ndarray]:
    """Calls each run once, then times all in turn. Returns {name: seconds [repetitions]}.

    A short run is called several times in a row and its mean taken.
    """
    calls = {}
    for name, run in runs.items():
        run()
        began = now(device)
        run()
        calls[name] = max(1, int(0.2 / (now(device) - began)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            began = now(device)
            for _ in range(calls[name]):
                run()
            seconds[name].append((now(device) - began) / calls[name])
    return {name: np.array(x) for name, x in seconds.items()}


def process_memory(field: str) -> float:
    """VmRSS or VmHWM, the resident memory of this process now or at its peak, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def header(title: str, packages: Iterable[str], threads: int = 0, device: str = "cpu") -> list[str]:
    """The first lines of a page: title, command, machine, versions of those packages."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    threads = threads or torch.get_num_threads()
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {threads} threads, {gpu}"
    malloc = [f"{name}={x}" for name, x in os.environ.items() if name.startswith("MALLOC_")]
    command = [*malloc, "python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    versions = [f"{name} {version(name)}" for name in packages if find_spec(name)]
    return [
        f"# {title}",
        "",
        f"`{' '.join(command)}`",
        "",
        f"{machine}; {time.strftime('%Y-%m-%d')}.",
        f"Python {platform.python_version()}, {', '.join(versions)}.",
        "",
    ]


def write(lines: list[str], args: Namespace) -> None:
    """Prints the page and, but for --no-write, writes it to --out."""
    print("\n".join(lines))
    if not args.no_write:
        args.out.write_text("\n".join(lines))
