"""What the framework checks share: how a case ends. The last line printed is its row's detail.

Exit codes as check.sh reads them: 0 passed, 1 failed, 77 the framework is not on this machine.
"""

import importlib
import sys

SKIPPED = 77


class Failed(Exception):
    """A check did not hold; the text is for the table."""


def need(name):
    """The module of this name, or the end of the process with a skip."""
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        print(f"{name} is not installed: {missing}")
        sys.exit(SKIPPED)


def check(holds, text):
    if not holds:
        raise Failed(text)


def close(got, want, text, tolerance=1e-2):
    """Relative distance in the Euclidean norm, so that one wrong element among many still shows."""
    import numpy

    got, want = numpy.asarray(got, dtype="float64"), numpy.asarray(want, dtype="float64")
    check(numpy.isfinite(got).all(), f"{text}: not all finite")
    distance = numpy.linalg.norm(got - want) / numpy.linalg.norm(want)
    check(distance < tolerance, f"{text}: off by {distance:.2g}, {tolerance} is allowed")


def run(case, *arguments):
    try:
        print(case(*arguments))
    except Failed as failure:
        print(f"{case.__name__}: {failure}")
        sys.exit(1)


def gib(count):
    return f"{count / 2**30:.2f} GiB"
