"""A run that is stopped at a given moment: `python -m tests.model.stopped_run PROGRAM SIGNAL MOMENT [flags]`

It is model.PROGRAM (train, train_head or predict) on two logical CPUs, and sends itself a signal (KILL, TERM, INT) at a
moment, told as in moments.py.
"""

from tests import conftest  # first: it sets the number of devices

# isort: split
from model import predict, train, train_head
from pipeline import program
from tests.model import moments, tiny

assert conftest


def main(argv: list[str]) -> None:
    _, chosen, name, moment, *flags = argv
    with tiny.known(), moments.signal_at(moment, name):
        {'train': train, 'train_head': train_head, 'predict': predict}[chosen].main([chosen, *flags])


if __name__ == '__main__':
    program.run(main)
