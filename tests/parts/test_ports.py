import socket
from pathlib import Path

from tests.parts.prometheus import unused_port

TIME_WAIT = "06"  # the kernel's include/net/tcp_states.h


def test_an_unused_port_is_given_to_nobody_else_and_can_be_had() -> None:
    port = unused_port()

    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    states = [state for _, local, _, state, *_ in rows if local.endswith(f":{port:04X}")]
    assert states == [TIME_WAIT]
    with socket.create_server(("127.0.0.1", port)):
        pass
