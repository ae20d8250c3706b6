"""Processes that are the workers of one MultiWorkerMirroredStrategy, on this machine."""

import json
import os
import pathlib
import socket
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
WORKERS = 2


def start(command, printed, **settings):
    """Starts a command on every worker: a list of processes, the chief first.

    Args:
        command: Function of a worker's number, that gives the command line.
        printed: Function of the same, that gives the path of the file into which the worker prints.
        **settings: Environment variables.
    """
    # Held all at once, so that no two are the same.
    sockets = [socket.create_server(("localhost", 0)) for _ in range(WORKERS)]
    addresses = [f"localhost:{held.getsockname()[1]}" for held in sockets]
    for held in sockets:
        held.close()
    processes = []
    for index in range(WORKERS):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        with open(printed(index), "w") as file:
            processes.append(
                subprocess.Popen(
                    command(index),
                    cwd=ROOT,
                    env={**os.environ, **settings, "TF_CONFIG": json.dumps(config)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes
