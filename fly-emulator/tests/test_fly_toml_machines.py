"""What flyctl makes of a fly.toml: its rules on groups, sizes, environment and the release machine."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.config.fly_toml import AppConfig, parse
from fly_emulator.config.vm_sizes import MEMORY_PER_CPU, PRESETS
from fly_emulator.machine_config import Guest, MachineConfig, Restart

GROUPS = 'app = "x"\n[processes]\napp = "a"\nbeta = "b"\nzeta = "z"\n'


def machine(text: str, group: str = "app") -> MachineConfig:
    return parse('app = "x"\n' + text).machines()[group]


def guests(text: str) -> dict[str, int]:
    return {group: config.guest.memory_mb for group, config in parse(GROUPS + text).machines().items()}


def test_an_http_service_is_a_service_with_two_ports() -> None:
    # superfly/flyctl internal/appconfig/service.go, ToService
    (service,) = machine(
        '[http_service]\ninternal_port = 80\nforce_https = true\n[http_service.tls_options]\nalpn = ["h2"]'
    ).services

    assert (service.protocol, service.internal_port) == ("tcp", 80)
    http, https = service.ports
    assert (http.port, http.handlers, http.force_https, http.tls_options) == (80, ("http",), True, {})
    assert (https.port, https.handlers, https.force_https) == (443, ("http", "tls"), False)
    assert https.tls_options == {"alpn": ["h2"]}


def test_http_service_comes_before_services() -> None:
    services = machine(
        "[[services]]\ninternal_port = 1\n[[services.ports]]\nport = 1\n[http_service]\ninternal_port = 2"
    ).services

    assert [service.internal_port for service in services] == [2, 1]


def test_tcp_checks_come_before_http_checks() -> None:
    # superfly/flyctl internal/appconfig/service.go, toMachineService
    (service,) = machine(
        "[[services]]\ninternal_port = 1\n[[services.ports]]\nport = 1\n"
        '[[services.http_checks]]\npath = "/a"\n[[services.tcp_checks]]\ninterval = "3s"'
    ).services

    assert [check.type for check in service.checks] == ["tcp", "http"]


def test_the_internal_port_is_8080_where_none_is_said() -> None:
    config = parse('app = "x"\n[http_service]\nforce_https = true')

    assert config.machines()["app"].services[0].internal_port == 8080
    assert config.warnings == ("fly.toml:2: http_service.internal_port: not set: 8080",)


@pytest.mark.parametrize("section", ["checks.c", "metrics", "restart", "mounts"])
def test_what_names_no_group_is_for_the_default_group(section: str) -> None:
    # superfly/flyctl internal/appconfig/processgroups.go, flattenGroupsMatch
    text = {
        "checks.c": '[checks.c]\ntype = "tcp"\nport = 1',
        "metrics": "[metrics]\nport = 9091",
        "restart": '[[restart]]\npolicy = "always"',
        "mounts": '[mounts]\nsource = "d"\ndestination = "/d"',
    }[section]
    machines = parse(GROUPS + text).machines()
    plain = parse(GROUPS).machines()

    assert {group for group, config in machines.items() if config != plain[group]} == {"app"}


def test_without_a_group_called_app_the_first_is_the_default() -> None:
    machines = parse('app = "x"\n[processes]\nzeta = "z"\nbeta = "b"\n[metrics]\nport = 1').machines()

    assert list(machines) == ["beta", "zeta"]
    assert [config.metrics is not None for config in machines.values()] == [True, False]


def test_a_vm_without_groups_is_for_all_but_those_with_their_own() -> None:
    # superfly/flyctl internal/appconfig/processgroups.go, ComputeForGroup
    own = '[[vm]]\nmemory = 1024\nprocesses = ["beta"]\n'
    everyone = "[[vm]]\nmemory = 512\n"

    assert guests(own + everyone) == {"app": 512, "beta": 1024, "zeta": 512}
    assert guests(everyone + own) == {"app": 512, "beta": 1024, "zeta": 512}
    assert guests(own) == {"app": 256, "beta": 1024, "zeta": 256}
    assert guests("") == {"app": 256, "beta": 256, "zeta": 256}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('size = "performance-4x"', Guest(cpu_kind="performance", cpus=4, memory_mb=8192)),
        ('size = "shared-cpu-2x"\nmemory = "2gb"', Guest(cpus=2, memory_mb=2048)),
        ('size = "shared-cpu-2x"\ncpus = 4\nmemory_mb = 1024', Guest(cpus=4, memory_mb=1024)),
        ('memory = "512mb"\nmemory_mb = 1024', Guest(memory_mb=1024)),
        ('cpu_kind = "performance"\nmemory = "2gb"', Guest(cpu_kind="performance", memory_mb=2048)),
        ('gpu_kind = "l40s"', Guest(cpu_kind="performance", cpus=8, memory_mb=16384)),
        ("cpus = 2", Guest(cpus=2, memory_mb=256)),
    ],
)
def test_every_key_of_a_vm_wins_over_its_size(text: str, expected: Guest) -> None:
    # superfly/flyctl internal/appconfig/machines.go, computeToGuest
    assert machine("[[vm]]\n" + text).guest == expected


@pytest.mark.parametrize("size", PRESETS)
def test_presets_are_within_the_bounds_of_their_kind(size: str) -> None:
    guest = PRESETS[size]
    least, most = MEMORY_PER_CPU[guest.cpu_kind]

    assert least * guest.cpus <= guest.memory_mb <= most * guest.cpus
    assert machine(f'[[vm]]\nsize = "{size}"').guest == guest


def test_the_environment_of_a_group() -> None:
    env = machine('primary_region = "fra"\n[env]\nA = "1"\nPRIMARY_REGION = "iad"').env

    assert env == {"A": "1", "PRIMARY_REGION": "fra", "FLY_PROCESS_GROUP": "app"}


def test_a_process_command_wins_over_the_experimental_one() -> None:
    text = '[experimental]\ncmd = ["x"]\nentrypoint = ["e"]\n[processes]\napp = "a b"\nother = ""'

    assert machine(text).init.cmd == ("a", "b")
    assert machine(text).init.entrypoint == ("e",)
    assert machine(text, "other").init.cmd == ("x",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Restart(policy="on-failure", max_retries=10)),
        ('[[restart]]\npolicy = "never"', Restart(policy="no")),
        ('[[restart]]\npolicy = "always"\nretries = 3', Restart(policy="always", max_retries=3)),
        ('[[restart]]\npolicy = "always"\n[[restart]]\npolicy = "never"', Restart(policy="no")),
    ],
)
def test_restart_policies(text: str, expected: Restart) -> None:
    assert machine(text).restart == expected


def test_the_machine_of_the_release_command() -> None:
    # superfly/flyctl internal/appconfig/machines.go, ToReleaseMachineConfig
    release = parse(
        'app = "x"\nprimary_region = "fra"\nkill_signal = "SIGTERM"\nswap_size_mb = 256\n'
        '[deploy]\nrelease_command = "sh -c \'a && b\'"\n[env]\nA = "1"\n'
        '[http_service]\ninternal_port = 1\n[mounts]\nsource = "d"\ndestination = "/d"\n'
        '[[vm]]\nmemory = "1gb"'
    ).release_machine()

    assert release is not None
    assert release.init.cmd == ("sh", "-c", "a && b")
    assert release.init.swap_size_mb == 256
    assert release.env == {
        "A": "1",
        "RELEASE_COMMAND": "1",
        "FLY_PROCESS_GROUP": "fly_app_release_command",
        "PRIMARY_REGION": "fra",
    }
    assert release.restart.policy == "no"
    assert release.auto_destroy
    assert (release.services, release.mounts) == ((), ())
    assert release.stop_config.signal == "SIGTERM"
    assert release.guest.memory_mb == 1024
    assert parse('app = "x"').release_machine() is None


def test_the_release_machine_may_have_a_size_of_its_own() -> None:
    release = parse(
        'app = "x"\n[deploy]\nrelease_command = "a"\n[deploy.release_command_vm]\nsize = "performance-1x"'
    ).release_machine()

    assert release is not None
    assert release.guest == PRESETS["performance-1x"]


def test_the_machines_that_test_another() -> None:
    # superfly/flyctl internal/appconfig/machines.go, ToTestMachineConfig
    config = parse(
        'app = "x"\nkill_signal = "SIGTERM"\nkill_timeout = 9\n[env]\nA = "1"\n[build]\nimage = "app:1"\n'
        '[http_service]\ninternal_port = 1\n[[http_service.machine_checks]]\ncommand = ["probe"]\n'
        '[[machine_checks]]\ncommand = ["curl"]\nimage = "curl"\nentrypoint = ["sh"]\nkill_signal = "SIGKILL"'
    )

    own, other = config.test_machines("app")

    assert (own.image, own.init.cmd, own.stop_config.signal, own.stop_config.timeout) == (
        "app:1",
        ("probe",),
        "SIGTERM",
        "9s",
    )
    assert (other.image, other.init.cmd, other.init.entrypoint) == ("curl", ("curl",), ("sh",))
    assert (other.stop_config.signal, other.stop_config.timeout) == ("SIGKILL", "5s")
    assert own.env == {"A": "1", "FLY_TEST_COMMAND": "1", "FLY_PROCESS_GROUP": "fly_app_test_machine_command"}
    assert own.restart.policy == "no"
    assert own.auto_destroy
    assert parse('app = "x"').test_machines("app") == ()


def test_machine_checks_test_the_groups_of_their_service() -> None:
    config = parse(
        GROUPS + '[http_service]\ninternal_port = 1\nprocesses = ["beta"]\n'
        '[[http_service.machine_checks]]\ncommand = ["probe"]'
    )

    assert [len(config.test_machines(group)) for group in config.machines()] == [0, 1, 0]


def test_defaults_of_a_deploy() -> None:
    deploy = parse('app = "x"').deploy

    assert (deploy.strategy, deploy.max_unavailable, deploy.release_command) == ("rolling", 0.33, None)
    assert (deploy.wait_timeout, deploy.release_command_timeout) == ("5m0s", "5m0s")


def document(name: str, values: dict[str, str]) -> str:
    return f"[{name}]\n" + "".join(
        f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in values.items()
    )


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True).filter(
            lambda name: not name.startswith("FLY_") and name != "PRIMARY_REGION"
        ),
        st.text("abcäß €\"'\\#=[]{}\n", max_size=12),
        max_size=5,
    )
)
def test_strings_of_env_arrive_as_they_are(values: dict[str, str]) -> None:
    config = parse('app = "x"\n' + document("env", values))

    assert config.env == values
    assert config.warnings == ()
    assert config.machines()["app"].env == {**values, "FLY_PROCESS_GROUP": "app"}


def wire(config: AppConfig) -> bytes:
    return msgspec.json.encode(config.machines())


def test_a_machine_configuration_survives_the_wire() -> None:
    config = parse(
        GROUPS
        + '[http_service]\nprocesses = ["app"]\ninternal_port = 1\n[http_service.tls_options]\nalpn = ["h2"]'
    )

    assert msgspec.json.decode(wire(config), type=dict[str, MachineConfig]) == config.machines()
