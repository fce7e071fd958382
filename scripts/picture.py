"""Takes the pictures of docs/images.

    .venv/bin/python scripts/picture.py [chat] [doctor]

chat.svg: `myhealth dev` in a real terminal (tmux), captured with its colours. The machine is left to fall
asleep before each question, so that the picture shows how long it took to wake.

doctor.svg: `myhealth doctor --offline` in a fresh clone, on a machine with git and nothing else: no flyctl,
no login, no secrets. The states are what it says; the picture adds their colours.

Rich draws the capture. Its own template loads fonts from the network; ours names what a machine has.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"
COLUMNS, ROWS = 96, 54
PORT = 3099
IDLE_SECONDS = 2
QUESTIONS = (
    "Wie viele Schritte bin ich in den letzten 4 Tagen gegangen?",
    "And how did I sleep last night?",
)
PATIENCE_S = 60
# Of `myhealth doctor`: each state's sign and colour.
SIGNS = {"ok": "green", "FAILED": "red", "by hand": "yellow", "unknown": "white"}
THEME = TerminalTheme(
    (23, 27, 33),
    (214, 219, 226),
    [
        *((23, 27, 33), (240, 113, 120), (126, 211, 133), (229, 192, 123)),
        *((97, 175, 239), (198, 120, 221), (86, 196, 214), (171, 178, 191)),
    ],
)
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Tmux:
    """A terminal of its own server."""

    def __init__(self, command: list[str]) -> None:
        self._base = ["tmux", "-L", "myhealth-picture", "-f", "/dev/null"]
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        self._run("new-session", "-d", *size, shlex.join(command))

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._base, *arguments], check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        """Type a line."""
        self._run("send-keys", "-l", text)
        self._run("send-keys", "Enter")

    def screen(self, *options: str) -> str:
        """Return what is to be seen."""
        return self._run("capture-pane", "-p", *options)

    def wait(self, happened: int) -> None:
        """Wait until the prompt stands there for the `happened`th time, empty, and the machine sleeps."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            lines = [line for line in self.screen().splitlines() if line.strip()]
            prompts = sum(line.startswith("▸") for line in lines)
            if [line[:8].strip() for line in lines[-2:]] == ["▸", "· asleep"] and prompts == happened:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"no prompt: {lines}")
            time.sleep(0.2)

    def end(self) -> None:
        """Close it, also when it has gone already."""
        subprocess.run([*self._base, "kill-server"], capture_output=True, check=False)


def main(names: list[str]) -> None:
    """Take the named pictures, by default all."""
    takes = {"chat": chat, "doctor": doctor}
    FOLDER.mkdir(exist_ok=True)
    for name in names or takes:
        target = FOLDER / f"{name}.svg"
        target.write_text(takes[name](), encoding="utf-8")
        print(f"wrote {target.name}: {target.stat().st_size:,} bytes")


def chat() -> str:
    """Play a conversation; return what the terminal shows."""
    with tempfile.TemporaryDirectory() as folder:
        dev = [sys.executable, "-m", "myhealth_cli", "dev", "--port", str(PORT), "--data", folder]
        command = ["env", f"IDLE_SECONDS={IDLE_SECONDS}", *dev]
        terminal = Tmux(command)
        try:
            for number, question in enumerate(QUESTIONS, 1):
                terminal.wait(number)
                terminal.type(question)
            terminal.wait(len(QUESTIONS) + 1)
            captured = terminal.screen("-e")
            terminal.type("/quit")
            deadline = time.monotonic() + PATIENCE_S
            while Path(folder, str(PORT), "processes.json").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            terminal.end()
    lines = captured.rstrip().splitlines()
    # The state of the machine stands at the bottom of the screen: not that far away in the picture.
    above = "\n".join(lines[:-1]).rstrip()
    return draw(Text.from_ansi(f"{above}\n\n{lines[-1]}"), title="make run", name="chat")


def doctor() -> str:
    """Run `myhealth doctor` where nothing is set up; return its picture."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "myhealth-agents")
        command = ["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)]
        subprocess.run(command, check=True)
        shown = subprocess.run(
            [sys.executable, "-m", "myhealth_cli", "doctor", "--offline"],
            cwd=clone,
            env={"PATH": "/usr/bin:/bin", "HOME": folder},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    text = Text()
    for line in shown.splitlines():
        text.append(coloured(line))
        text.append("\n")
    text.rstrip()
    return draw(text, title="myhealth doctor --offline", name="doctor")


def coloured(line: str) -> Text:
    """Return a line of the list with the colour of its state, wrapped under its title."""
    sign = line[2:9].strip()
    if not line.startswith("  ") or sign not in SIGNS:
        return Text(line, style="bold" if line and not line[0].isdigit() else "")
    first, *more = textwrap.wrap(line[9:].strip(), COLUMNS - 11)
    text = Text("  ").append(line[2:9], style=SIGNS[sign]).append(f"  {first}")
    for rest in more:
        text.append(f"\n{' ' * 11}{rest}")
    return text


def draw(text: Text, *, title: str, name: str) -> str:
    """Return the SVG of a text."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(text)
    return console.export_svg(title=title, theme=THEME, code_format=FORMAT, unique_id=name)


if __name__ == "__main__":
    main(sys.argv[1:])
