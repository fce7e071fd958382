"""Measures what the emulator costs: `python measure_cost.py [streams] [deltas] [delay_ms]`.

Starts a server, opens the streams at once from this process, and prints CPU of the server alone per 1000
deltas, how late the deltas came, and its memory.
"""

import asyncio
import json
import subprocess
import sys
import time

import psutil
import uvloop

REQUEST = "POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\n"


async def one(host: str, port: int, body: bytes, delay: float, lateness: list[float]) -> int:
    """Read one stream; gives its number of deltas and adds how much later than `delay` each came."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{REQUEST}content-length: {len(body)}\r\n\r\n".encode() + body)
    deltas, first = 0, 0.0
    while data := await reader.read(65536):
        for _ in range(data.count(b"text_delta")):
            now = time.perf_counter()
            first = first or now
            lateness.append(now - first - deltas * delay)
            deltas += 1
        if b"message_stop" in data:
            break
    writer.close()
    return deltas


async def load(url: str, streams: int, deltas: int, delay_ms: float) -> tuple[int, list[float]]:
    """Open all streams within a second and read them to their ends."""
    host, port = url.removeprefix("http://").split(":")
    directive = f"[[emulator: tokens={deltas} ttft_ms=0 delay_ms={delay_ms}]]"
    message = {"role": "user", "content": directive}
    body = json.dumps(
        {"model": "claude-haiku-5-5", "max_tokens": 9000, "stream": True, "messages": [message]}
    ).encode()
    lateness: list[float] = []
    tasks: list[asyncio.Task[int]] = []
    for _ in range(streams):
        tasks.append(asyncio.create_task(one(host, int(port), body, delay_ms / 1000, lateness)))
        await asyncio.sleep(1 / streams)
    return sum(await asyncio.gather(*tasks)), lateness


def main() -> None:
    """Run and print one line of JSON."""
    streams, deltas = (int(value) for value in (sys.argv[1:3] or (500, 200)))
    delay_ms = float(sys.argv[3]) if len(sys.argv) > 3 else 50.0
    command = [sys.executable, "-m", "anthropic_emulator", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        process = psutil.Process(server.pid)
        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
        total, lateness = uvloop.run(load(url, streams, deltas, delay_ms))
        cpu, took = sum(process.cpu_times()[:2]) - before, time.perf_counter() - began
        memory = process.memory_full_info().pss / 2**20
        server.terminate()
    lateness.sort()
    result = {
        "streams": streams,
        "deltas": total,
        "seconds": round(took, 2),
        "cpu_ms_per_1000_deltas": round(cpu / total * 1e6, 1),
        "share_of_a_core": round(cpu / took, 3),
        "late_p50_ms": round(lateness[len(lateness) // 2] * 1000, 1),
        "late_p99_ms": round(lateness[len(lateness) * 99 // 100] * 1000, 1),
        "pss_mb": round(memory, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
