"""A training run that is stopped at a given moment: `python -m tests.model.stopped_run SIGNAL MOMENT [flags]`

It is model.train on two logical CPUs, and sends itself a signal (KILL, TERM, INT) at a moment, told as in moments.py.
"""

from tests import conftest  # first: it sets the number of devices

# isort: split
from model import train
from pipeline import program
from tests.model import moments, tiny

assert conftest


def main(argv: list[str]) -> None:
    program_name, name, moment, *flags = argv
    with tiny.known(), moments.signal_at(moment, name):
        train.main([program_name, *flags])


if __name__ == '__main__':
    program.run(main)
