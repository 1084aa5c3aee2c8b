"""A worker ends with the program that started it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline import beam_worker

REPOSITORY = Path(beam_worker.__file__).parents[1]
# Starts a worker that does nothing but watch, says so, and waits.
PROGRAM = """
import os, subprocess, sys, time
begin = f'from pipeline import beam_worker; beam_worker.end_with({os.getpid()})'
wait = 'import time; print("watching", flush=True); time.sleep(60)'
subprocess.Popen([sys.executable, '-c', f'{begin}; {wait}'])
time.sleep(60)
"""


def test_a_worker_ends_when_its_program_is_killed():
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    program = subprocess.Popen([sys.executable, '-c', PROGRAM], stdout=subprocess.PIPE, env=environment)
    assert program.stdout
    assert program.stdout.readline() == b'watching\n'
    program.kill()
    program.communicate(timeout=10)  # waits for all that may still write there: the worker


def test_a_worker_ends_whose_program_is_gone_before_it_looks():
    watch = 'from pipeline import beam_worker; beam_worker.end_with(0); import time; time.sleep(60)'
    done = subprocess.run([sys.executable, '-c', watch], env={**os.environ, 'PYTHONPATH': str(REPOSITORY)}, timeout=30)
    assert done.returncode == 1
