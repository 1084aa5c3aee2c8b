"""A Beam worker process that tells what it has to say to the program that started it, and only there.

Beam's own entry point also copies its log, hundreds of lines, to the terminal: some module under it logs before a
handler is set, and Python then sets one up for stderr. A handler set first prevents that. And it prints the traceback
of a failed step, which the program gets anyway; what ends the worker itself is still printed.

Beam's FnApiRunner says in the environment what the worker must know. A Flink task manager (--environment_type=PROCESS)
says only where to ask: `--id=ID --provision_endpoint=HOST:PORT`. Beam's answer to that is a Go program in its container
images, which asks, installs what the job brought along, and starts the worker. Here all is installed.

Beam's worker would live on, and write, for a minute or for ever when its program is killed; this one ends with it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time


def _ask(worker_id: str, endpoint: str) -> dict[str, str]:
    """The environment that Beam's entry point reads, from a runner's provision service."""
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from google.protobuf import json_format, text_format

    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = service.GetProvisionInfo(request, metadata=[('worker_id', worker_id)], timeout=60).info
    return {
        'WORKER_ID': worker_id,
        'PIPELINE_OPTIONS': json_format.MessageToJson(info.pipeline_options),
        'CONTROL_API_SERVICE_DESCRIPTOR': text_format.MessageToString(info.control_endpoint),
        'LOGGING_API_SERVICE_DESCRIPTOR': text_format.MessageToString(info.logging_endpoint),
        'RUNNER_CAPABILITIES': ' '.join(info.runner_capabilities),
    }


def end_with(program: int) -> None:
    """Ends this process as soon as the program that started it is gone: its children then have another parent.

    Ctrl-C, which the terminal sends to all of them, is left to the program.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == program:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work() -> None:
    """Does what the runner asks for, which the environment names, until the job is over."""
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    gc.freeze()  # Beam's modules hold half a million objects; looking through them over and over costs time
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere):
        sdk_worker_main.main(sys.argv)


def main() -> None:
    """Runs a worker as a program of its own."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--program', type=int)
    parser.add_argument('--id')
    parser.add_argument('--provision_endpoint')
    given, _ = parser.parse_known_args()
    if given.program:
        end_with(given.program)
    if given.provision_endpoint:
        os.environ.update(_ask(given.id, given.provision_endpoint))
    work()


if __name__ == '__main__':
    main()
