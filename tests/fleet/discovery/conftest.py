from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.fleet.discovery.sockets")


@pytest.fixture
def base(socket_dir: Path) -> Path:
    return socket_dir
