"""A small web server: says what it was given, and does what a test asks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def health() -> int:
    flag = os.environ.get("HEALTH_FLAG")
    return 200 if flag is None or Path(flag).exists() else 503


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(health(), "fine" if health() == 200 else "not yet")
        elif self.path == "/env":
            self.reply(200, json.dumps({**os.environ, "_pid": str(os.getpid())}))
        elif self.path.startswith("/exit/"):
            code = int(self.path.rpartition("/")[2])
            threading.Timer(0.01, os._exit, (code,)).start()
            self.reply(200, "bye")
        elif self.path == "/fill":
            threading.Thread(target=fill).start()
            self.reply(200, "filling")
        else:
            self.reply(404, "")

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_request(self, code: object = "-", size: object = "-") -> None:
        del code, size


def fill() -> None:
    blocks: list[bytearray] = []
    while True:
        blocks.append(bytearray(b"x" * 10_000_000))


def tick(path: str) -> None:
    while True:
        Path(path).write_text(str(time.monotonic()))
        time.sleep(0.005)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def on_signal(number: int, frame: object) -> None:
    del frame
    if number == signal.SIGUSR1:
        say("usr1")
        return
    if number == signal.SIGTERM:
        say("draining")
    sys.exit(0)


def main() -> None:
    if "DESCENDANT" in os.environ:
        apart = os.environ["DESCENDANT"] == "session"
        say(f"descendant {subprocess.Popen(['sleep', '600'], start_new_session=apart).pid}")
    stubborn = "STUBBORN" in os.environ
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if stubborn else on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    server.daemon_threads = True
    if "TICKS" in os.environ:
        threading.Thread(target=tick, args=(os.environ["TICKS"],), daemon=True).start()
    say("listening")
    server.serve_forever()


main()
