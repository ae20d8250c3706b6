"""The wait of workers for each other, in threads and without TensorFlow; see `test_workers.py` for processes."""

import json
import socket
import threading
import time

import pytest

from keras_wsl.backend.tensorflow import multi_worker


def free_addresses(count):
    """Return addresses of this machine with different free ports."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    return tuple(addresses)


class Worker(threading.Thread):
    """A worker that waits. `error` is the exception that it raised, `seconds` the time that it took."""

    def __init__(self, addresses, index, timeout=30.0):
        super().__init__(daemon=True)
        self.cluster, self.timeout, self.error = multi_worker.Cluster(addresses, index), timeout, None
        self.start()

    def run(self):
        begin = time.monotonic()
        try:
            multi_worker.wait(self.cluster, self.timeout)
        except OSError as error:
            self.error = error
        self.seconds = time.monotonic() - begin


def _join(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_wait_returns_when_all_workers_wait(order, capfd):
    addresses = free_addresses(3)
    first, second = (Worker(addresses, index) for index in order[:2])
    time.sleep(1)
    assert first.is_alive() and second.is_alive()
    _join([first, second, Worker(addresses, order[2])])
    assert first.error is None and second.error is None
    assert f"waiting for workers {addresses[order[2]]}, at most " in capfd.readouterr().err
    with socket.create_server(("localhost", int(addresses[0].split(":")[1]))):  # TensorFlow can have the port.
        pass


def test_wait_for_missing_workers_times_out(capfd):
    addresses = free_addresses(3)
    threads = [Worker(addresses, 0, 1.0), Worker(addresses, 2, 3.0)]
    _join(threads)
    assert str(threads[0].error).startswith(f"Workers are missing after 1 s: {addresses[1]}. All workers must")
    assert str(threads[1].error).startswith(f"Workers are missing after 3 s: {addresses[0]}. All workers must")
    assert threads[0].seconds == pytest.approx(1, abs=2)
    assert capfd.readouterr().err.count(f"waiting for workers {addresses[1]}, at most") == 2


def test_wait_continues_if_a_worker_leaves(capfd):
    """Waiting continues if one of two workers ends before the third one starts."""
    addresses = free_addresses(3)
    leader, leaver = Worker(addresses, 0), Worker(addresses, 1, 1.0)
    _join([leaver])
    third = Worker(addresses, 2)
    time.sleep(1)
    assert leader.is_alive() and third.is_alive()
    _join([Worker(addresses, 1), leader, third])
    assert leader.error is None and third.error is None


def test_wait_ignores_other_clusters_and_servers():
    addresses, other = free_addresses(2), free_addresses(1)
    threads = [Worker(addresses, 0, 2.0), Worker((addresses[0], other[0]), 1, 2.0)]
    with socket.create_connection(("localhost", int(addresses[0].split(":")[1])), 5) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        _join(threads)
    assert all(isinstance(thread.error, TimeoutError) for thread in threads)
    with socket.create_server(("localhost", int(addresses[0].split(":")[1]))):  # Accepts and says nothing.
        taken, waits = Worker(addresses, 0, 2.0), Worker(addresses, 1, 1.0)
        _join([taken, waits])
    assert isinstance(waits.error, TimeoutError)
    assert f"cannot listen at its address {addresses[0]}" in str(taken.error)


def test_wait_returns_immediately_for_one_worker():
    multi_worker.wait(multi_worker.Cluster(("localhost:1",), 0))


def test_read_cluster_puts_the_chief_first():
    config = {"cluster": {"worker": ["b:2", "c:3"], "chief": ["a:1"]}, "task": {"type": "worker", "index": "1"}}
    assert multi_worker.read_cluster(json.dumps(config)) == multi_worker.Cluster(("a:1", "b:2", "c:3"), 2)
    config["task"] = {"type": "chief", "index": 0}
    assert multi_worker.read_cluster(json.dumps(config)).index == 0


@pytest.mark.parametrize("addresses", [["a:1", "a:1"], ["a:1", "b:0"], ["a:1", "b:65536"]])
def test_read_cluster_refuses_invalid_addresses(addresses):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    with pytest.raises(ValueError, match="must have different addresses with ports. Received: "):
        multi_worker.read_cluster(json.dumps(config))


@pytest.mark.parametrize("address", ["b", "b:http", 5])
def test_read_cluster_refuses_addresses_without_ports(address):
    config = {"cluster": {"worker": ["a:1", address]}, "task": {"type": "worker", "index": 0}}
    with pytest.raises(ValueError, match="TF_CONFIG must name all workers"):
        multi_worker.read_cluster(json.dumps(config))
