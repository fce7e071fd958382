"""Many clients while machines stop, suspend and hang up: no answer is mixed up, and nothing stays open."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from fly_emulator.machine_config import MachineConfig

from .edge_client import LoggedEdge, RawClient, an_edge, until, within
from .local_fleet import LocalFleet, raw, service


class Crowd:
    """Clients that send random bodies and check the answers; some leave in the middle."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.whole = 0
        """Answers that arrived whole; all of them were right."""

    async def digest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve like a machine that hangs up now and then."""
        while self.chance.random() > 0.1:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            body = sha256(await reader.readexactly(length)).hexdigest().encode() * 500
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 5000):
                writer.write(b"%x\r\n%s\r\n" % (len(body[at : at + 5000]), body[at : at + 5000]))
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async def talk(self, edge: LoggedEdge) -> None:
        """Be one client."""
        client = await RawClient.connect(edge)
        for _ in range(5):
            body = self.chance.randbytes(self.chance.choice((0, 10, 5_000, 200_000)))
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            if self.chance.random() < 0.1:
                break
            try:
                status, _, answer = await client.answer()
            except (ConnectionError, asyncio.IncompleteReadError):
                break
            if status == 200:
                assert answer == sha256(body).hexdigest().encode() * 500
                self.whole += 1
        client.writer.transport.abort()


async def disturb(crowd: Crowd, fleet: LocalFleet) -> None:
    """Stop and suspend machines as the answers come."""
    for at in range(8):
        await until(lambda at=at: crowd.whole >= 5 * at)
        machine = fleet.all[at % 3]
        if machine.state == "started":
            await machine.stop("suspended" if at % 2 else "stopped")


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_answer_is_mixed_up_while_machines_come_and_go(tmp_path: Path, seed: int) -> None:
    fleet, crowd = LocalFleet(), Crowd(seed)
    for _ in range(3):
        fleet.add(raw(crowd.digest)).config = MachineConfig(services=(service(soft=3, hard=10),))
    async with an_edge(fleet, tmp_path, leaving_grace=0.05) as edge:
        disturbing = asyncio.create_task(disturb(crowd, fleet))
        await within(asyncio.gather(*(crowd.talk(edge) for _ in range(40))), 60)
        disturbing.cancel()
        assert crowd.whole > 20
        await until(lambda: edge.open_load() == 0)
