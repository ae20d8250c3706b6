"""Processes that are the workers of one MultiWorkerMirroredStrategy, on this machine."""

import json
import os
import pathlib
import socket
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
WORKERS = 2


def free_ports(number):
    """Return the numbers of ports of this machine that are free, no two equal."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]  # All at once, so that they differ.
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def start(command, log, **environment):
    """Start a command on every worker, and return the processes, the chief first.

    Args:
        command: Function of a worker's number that returns the command line.
        log: Function of a worker's number that returns the path of the file into which the worker prints.
        **environment: Environment variables.
    """
    addresses = [f"localhost:{port}" for port in free_ports(WORKERS)]
    processes = []
    for index in range(WORKERS):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        with open(log(index), "w") as file:
            processes.append(
                subprocess.Popen(
                    command(index),
                    cwd=ROOT,
                    env={**os.environ, **environment, "TF_CONFIG": json.dumps(config)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes
