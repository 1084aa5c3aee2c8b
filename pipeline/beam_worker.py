"""A Beam worker process that tells what it has to say to the program that started it, and only there.

Beam's own entry point also copies its log, hundreds of lines, to the terminal: some module under it logs before a
handler is set, and Python then sets one up for stderr. A handler set first prevents that. And it prints the traceback
of a failed step, which the program gets anyway; what ends the worker itself is still printed.
"""

import contextlib
import gc
import logging
import os
import sys

if __name__ == '__main__':
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    gc.freeze()  # Beam's modules hold half a million objects; looking through them over and over costs a fifth
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere):
        sdk_worker_main.main(sys.argv)
