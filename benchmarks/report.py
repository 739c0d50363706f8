"""How the benchmarks' pages begin, with the command and the machine, and where they go."""

import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch


def header(title: str, packages: Iterable[str], threads: int = 0, device: str = "cpu") -> list[str]:
    """The first lines of a page. packages: names of those whose versions matter; threads: PyTorch's, 0: its default."""
    cpu = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    return [
        f"# {title}",
        "",
        f"`python benchmarks/{Path(sys.argv[0]).name}{''.join(' ' + a for a in sys.argv[1:])}`",
        "",
        f"{cpu}, {os.cpu_count()} cores, {threads or torch.get_num_threads()} threads, {gpu}; {time.strftime('%Y-%m-%d')}.",
        f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages if find_spec(p)) + ".",
        "",
    ]


def write(lines: list[str], args: Namespace) -> None:
    """Prints the page and, but for --no-write, writes it to --out."""
    print("\n".join(lines))
    if not args.no_write:
        args.out.write_text("\n".join(lines))
