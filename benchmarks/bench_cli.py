"""Time `kedro registry list` beside `kedro --version`: what listing the pipelines costs.

python benchmarks/bench_cli.py --repeat 5
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def seconds(*words: str) -> float:
    """Wall time of one kedro command as a whole process."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "kedro", *words], cwd=PROJECT, check=True, capture_output=True
    )
    return time.perf_counter() - start


def main() -> None:
    """Time both commands in turns and print medians and their difference."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeat", type=int, default=5)
    repeat = options.parse_args().repeat
    seconds("--version")
    pairs = [(seconds("registry", "list"), seconds("--version")) for _ in range(repeat)]
    listing, version = (statistics.median(column) for column in zip(*pairs, strict=True))
    difference = statistics.median(a - b for a, b in pairs)
    print(f"kedro registry list {listing:.2f} s, kedro --version {version:.2f} s")
    print(f"difference {difference:.2f} s")


if __name__ == "__main__":
    main()
