"""The stand-in for flyctl by itself: what it refuses, how it reads a command line, how it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fly_emulator.flyctl.errors import FlyctlError
from fly_emulator.flyctl.http import Url
from fly_emulator.flyctl.main import COMMANDS
from fly_emulator.flyctl.secrets import parse_secrets
from fly_emulator.flyctl.words import read

from .flyctl import ONE, STAND_IN, serving


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("scale count 2", 'unknown command "scale" for "flyctl"'),
        ("apps destroy shop", 'unknown command "apps destroy" for "flyctl"'),
        ("status extra", 'unknown command "extra" for "flyctl status"'),
        ("deploy --image a --detach", "unknown flag: --detach"),
        ("deploy -z", "unknown shorthand flag: 'z' in -z"),
        ("deploy --ha=perhaps", 'invalid argument "perhaps" for "--ha" flag: not a boolean'),
        ("deploy --image", "flag needs an argument: --image"),
    ],
)
def test_what_it_has_not_it_refuses_by_name(words: str, says: str) -> None:
    with pytest.raises(FlyctlError) as refused:
        read(words.split(), COMMANDS)
    assert str(refused.value) == says


def test_a_flag_is_read_however_it_is_written() -> None:
    words = "deploy -a shop -cfly.toml --image=ref:1 -e A=1 --env B=2=3 --ha=false --skip-release-command"
    flags = read(words.split(), COMMANDS).flags
    assert (flags["app"], flags["config"], flags["image"]) == ("shop", "fly.toml", "ref:1")
    assert flags["env"] == ("A=1", "B=2=3")
    assert (flags["ha"], flags["smoke-checks"], flags["skip-release-command"]) == (False, True, True)
    assert read(["machine", "start", "--app", "shop", "--", "-1"], COMMANDS).arguments == ("-1",)


def test_secrets_are_read_as_flyctl_reads_them() -> None:
    # A # begins a comment where the quotes before it are even.
    text = '# why\n\n A =one # two\nB="three # four"\nC="five # six" # 7\nD="""8\n 9"""\nE=\nF=a=b\n'
    assert parse_secrets(text) == {
        "A": "one",
        "B": "three # four",
        "C": '"five # six" # 7',
        "D": "8\n 9",
        "E": "",
        "F": "a=b",
    }


@pytest.mark.parametrize("url", ["https://api.fly.io", "http://10.0.0.1:80", "http://127.0.0.1", ""])
def test_it_asks_nobody_but_an_emulator(url: str) -> None:
    with pytest.raises(ValueError, match=f"^{url}$"):
        Url(url)
    ended = subprocess.run(
        [STAND_IN, "apps", "list"],
        env={"FLY_API_TOKEN": "t", "FLY_API_BASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert f"FLY_API_BASE_URL={url!r} is not http://127.0.0.1:PORT" in ended.stderr


def test_it_starts_without_what_servers_need() -> None:
    heavy = "{'aiohttp', 'msgspec', 'http.client', 'ssl'}"
    code = f"import sys, fly_emulator.flyctl.main; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == "set()\n"


def test_an_interrupted_deploy_gives_its_leases_back(tmp_path: Path) -> None:
    with serving(tmp_path, STAND_IN) as fly:
        fly.app("shop")
        fly.deploy("shop", "v1", *ONE)
        words = ("deploy", "-c", fly.toml("shop"), "--image", "registry.fly.io/shop:v2", "--yes")
        with subprocess.Popen([STAND_IN, *words], env=fly.env, stdout=subprocess.PIPE, text=True) as process:
            ends = time.monotonic() + 30
            while fly.tags("shop") != ["v2"]:
                assert time.monotonic() < ends
            # It looks at the machine for ten seconds.
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 127
        releases = json.loads(fly.run("releases", "-a", "shop", "--json"))
        assert [each["Status"] for each in releases] == ["interrupted", "complete"]
        [machine] = fly.machines("shop")
        fly.run("machine", "stop", machine["id"], "-a", "shop")
