"""The least that qemu.qmp can do about a panic, as a reference: events in, commands out, no more.

python -m tests.bench.plain DIRECTORY COUNT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from qemu.qmp import QMPClient


async def restart(path: Path) -> None:
    """Restart one VM whenever it panics."""
    client = QMPClient()
    await client.connect(str(path))
    await client.execute("set-action", {"panic": "pause"})
    async for event in client.events:
        if event["event"] == "GUEST_PANICKED":
            await client.execute("system_reset")
            await client.execute("cont")


async def main(directory: Path, count: int) -> None:
    """Restart each VM of a fleet whenever it panics."""
    await asyncio.gather(*(restart(directory / f"vm-{i:05}.qmp") for i in range(count)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
