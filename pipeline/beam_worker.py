"""A Beam worker process whose log goes to the program that started it, and only there.

Beam's own entry point also copies its log, hundreds of lines, to the terminal: some module under it logs before a
handler is set, and Python then sets one up for stderr. A handler set first prevents that.
"""

import logging
import sys

if __name__ == '__main__':
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
