"""What can be said about a cluster before Ray is asked."""

from __future__ import annotations

import socket
import time

import pytest

from router.control.cluster import LONGEST_FOLDER, temporary_folder
from router.control.cluster_probe import check_address, named_address, probe_cluster
from router.control.listen_address import check_listen_address
from triptych.errors import ConfigurationError


@pytest.mark.parametrize("address", ["somewhere", "host:", ":1", "ray://host:10001", "http://host:8265/", "host:port"])
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="expected 'auto', host:port") as error:
        check_address(address)
    assert error.value.field == "control.address"


def test_an_address_that_nobody_answers_at_is_refused_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"nothing answers there .*ray start --head"):
        check_address("127.0.0.1:1")
    assert time.monotonic() - begun < 2.0


def test_an_address_that_listens_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    check_address("auto")


def test_a_long_temporary_folder_is_replaced() -> None:
    assert temporary_folder("/tmp") == "/tmp/ray"
    assert temporary_folder("/var/folders/" + "x" * 60) == "/tmp/ray"
    # Ray's longest socket path below it must fit into the 107 bytes that the system allows.
    longest = "x" * LONGEST_FOLDER + "/session_2026-11-23_16-22-13_998431_1234567/sockets/plasma_store"
    assert len(longest) <= 107


def test_something_that_is_no_ray_cluster_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.control.cluster_probe.PROBE_TIMEOUT_S", 3.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ConfigurationError, match="no Ray cluster answers"),
    ):
        probe_cluster(f"127.0.0.1:{server.getsockname()[1]}")


def test_auto_is_the_cluster_that_the_environment_names() -> None:
    environment = {"RAY_ADDRESS": "127.0.0.1:6379"}
    assert named_address("auto", environment) == "127.0.0.1:6379"
    assert named_address("head:1", environment) == "head:1"
    assert named_address("auto", {}) == "auto"


def test_a_taken_port_is_refused_with_the_flag_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError, match=r"Address already in use; .*--port \(router\.port\)"):
            check_listen_address("127.0.0.1", port)
    check_listen_address("127.0.0.1", port)
    check_listen_address("127.0.0.1", 0)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"can't listen on .*--host \(router\.host\)"):
        check_listen_address(host, 0)
