"""Wait until all workers of a `TF_CONFIG` cluster have started, before TensorFlow connects them.

While TensorFlow waits for a worker it holds Python's lock and catches SIGTERM, has no time limit and prints nothing.
Here the wait is in Python: the first worker opens a server at its address, the others connect to it, and it sends them
which workers are missing until there are none.
"""

import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time

TIMEOUT = 600.0
INTERVAL = 0.2  # Seconds of one round, after which the first worker sends which workers are missing.
CONNECT_TIMEOUT, HELLO_TIMEOUT = 5.0, 2.0
HELLO_BYTES = hashlib.sha256().digest_size
EXAMPLE = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a cluster and which of them this process is.

    Args:
        addresses: Tuple of `host:port` of all workers, the chief first.
        index: The place of this process among them.
    """

    addresses: tuple
    index: int

    @property
    def address(self):
        """The address of this process."""
        return self.addresses[self.index]

    def hello(self, index):
        """Return the bytes by which the worker at an index identifies itself and its cluster."""
        return hashlib.sha256(json.dumps([self.addresses, index]).encode()).digest()


def read_cluster(text):
    """Return the `Cluster` that `TF_CONFIG` describes.

    Args:
        text: The variable's value, or `None`.

    Raises:
        ValueError: If it does not name workers with their ports, and this process as one of them.
    """
    try:
        config = json.loads(text or "")
        task = config["task"]
        address = config["cluster"][task["type"]][int(task["index"])]
        workers = [*config["cluster"].get("chief", []), *config["cluster"].get("worker", [])]
        ports = [_port(worker) for worker in workers]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG must name all workers, and which of them this process is, such as {EXAMPLE}. Received: "
            f"{text!r} ({type(error).__name__})."
        ) from error
    if task["type"] not in ("chief", "worker") or int(task["index"]) < 0:
        raise ValueError(
            "The task in TF_CONFIG must have the type chief or worker, and an index of at least 0. Received: the "
            f"{task['type']!r} {address!r} with index {task['index']}."
        )
    if len(set(workers)) < len(workers) or not all(0 < port < 2**16 for port in ports):
        raise ValueError(f"The workers in TF_CONFIG must have different addresses with ports. Received: {workers}.")
    first = 0 if task["type"] == "chief" else len(config["cluster"].get("chief", []))
    return Cluster(tuple(workers), first + int(task["index"]))


def wait(cluster, timeout=TIMEOUT):
    """Return when all workers of a cluster have called this function.

    Print to standard error which workers are missing, whenever that changes.

    Args:
        cluster: `Cluster`.
        timeout: Seconds, a positive float.

    Raises:
        TimeoutError: If workers are still missing after that time.
        OSError: If the first worker cannot listen at its address.
    """
    if len(cluster.addresses) == 1:
        return
    shown, end = None, time.monotonic() + timeout
    with contextlib.closing((_follow if cluster.index else _lead)(cluster)) as rounds:
        for missing in rounds:
            left = end - time.monotonic()
            if not missing:
                sys.stderr.write(f"connecting {len(cluster.addresses)} workers, at most {timeout:.0f} s\n")
                return
            if left < 0:
                raise TimeoutError(
                    f"Workers are missing after {timeout:g} s: {', '.join(missing)}. All workers must start within "
                    "`worker_timeout` with the same cluster in TF_CONFIG. Start them, or pass a larger timeout."
                )
            if missing != shown:
                sys.stderr.write(f"waiting for workers {', '.join(missing)}, at most {left:.0f} s\n")
                shown = missing


def _lead(cluster):
    """Yield the addresses of the missing workers on the first worker, and send them to the others."""
    expected = {cluster.hello(index): cluster.addresses[index] for index in range(1, len(cluster.addresses))}
    connections = {}  # The address of the worker at the other end, or `None` if it is not one of the workers.
    with _listen(cluster.address) as server, contextlib.ExitStack() as stack:
        stack.callback(lambda: [connection.close() for connection in connections])
        server.settimeout(INTERVAL)
        while True:
            with contextlib.suppress(OSError):  # No worker has connected in this interval, or it has ended again.
                connection, _ = server.accept()
                connections[connection] = None
                connection.settimeout(HELLO_TIMEOUT)
                connections[connection] = expected.get(connection.recv(HELLO_BYTES))
                connection.setblocking(False)
            for connection, address in list(connections.items()):
                if address is None or not _is_open(connection):
                    del connections[connection]
                    connection.close()
            missing = [address for address in expected.values() if address not in connections.values()]
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(missing).encode() + b"\n")
            yield missing


def _listen(address):
    """Return a server socket at the port of an address."""
    family = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        return socket.create_server(("", _port(address)), **family)
    except OSError as error:
        raise OSError(
            f"This worker cannot listen at its address {address}: {error}. Its port must be free. End the process that "
            "uses it, or change TF_CONFIG on all workers."
        ) from error


def _is_open(connection):
    """Return whether the other end of a non-blocking connection is still open."""
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _follow(cluster):
    """Yield the addresses of the missing workers, as the first worker sends them, on one of the others."""
    first = cluster.addresses[0]
    host = first.rpartition(":")[0].strip("[]")
    while True:
        with (
            contextlib.suppress(OSError, ValueError),  # The first worker is not there, or something else is.
            socket.create_connection((host, _port(first)), timeout=CONNECT_TIMEOUT) as connection,
        ):
            connection.sendall(cluster.hello(cluster.index))
            yield from map(json.loads, connection.makefile())
        yield [first]
        time.sleep(INTERVAL)


def _port(address):
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def ended_by_signals():
    """Let SIGTERM, SIGINT and SIGHUP end the process at once while it waits for other workers inside TensorFlow.

    Python runs its handlers only after TensorFlow has returned. At the end, the previous handlers are
    restored, although TensorFlow replaces the one of SIGTERM when it connects workers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number in [number for number, handler in before.items() if callable(handler)]:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def reminder(message, after=5.0):
    """Print a message to standard error if the block takes longer than `after` seconds, such as inside TensorFlow."""
    timer = threading.Timer(after, sys.stderr.write, [f"{message}\n"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def ended_after(timeout):
    """End the process with status 1 after `timeout` seconds, also while TensorFlow holds Python's lock.

    Args:
        timeout: Seconds, a positive float.
    """
    with open(os.devnull, "w") as file:
        faulthandler.dump_traceback_later(timeout, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
