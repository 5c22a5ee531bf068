from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.qemu.discovery.sockets")


@pytest.fixture
def base(socket_dir: Path) -> Path:
    return socket_dir
