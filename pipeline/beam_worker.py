"""A Beam worker process that tells what it has to say to the program that started it, and only there.

Beam's own entry point also copies its log, hundreds of lines, to the terminal: some module under it logs before a
handler is set, and Python then sets one up for stderr. A handler set first prevents that. And it prints the traceback
of a failed step, which the program gets anyway; what ends the worker itself is still printed.

And its worker would live on and write, for a minute or for ever, when the program is killed; this one ends with it.
Argument: the program's process id.
"""

import contextlib
import logging
import os
import sys
import threading
import time


def end_with(program: int) -> None:
    """Ends this process as soon as the program is gone: its children then have another parent."""
    while os.getppid() == program:
        time.sleep(0.2)
    os._exit(1)


if __name__ == '__main__':
    started_by = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    threading.Thread(target=end_with, args=(started_by,), daemon=True).start()
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere):
        sdk_worker_main.main(sys.argv)
