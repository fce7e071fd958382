"""Makes of a fly.toml what flyctl makes of it: a machine configuration for each process group.

Source: superfly/flyctl ad0172f (2026-08-21) `internal/appconfig/machines.go`, `service.go` and
`toplevelcheck.go`.
"""

from __future__ import annotations

import shlex
from typing import Any, TypeAlias

import msgspec

from fly_emulator.config.toml_forms import format_duration
from fly_emulator.config.toml_groups import compute_of, default_group, of_group, services_of
from fly_emulator.config.toml_schema import Section
from fly_emulator.config.toml_sections import (
    Compute,
    FlyToml,
    HttpService,
    HttpServiceCheck,
    Mount,
    PortSection,
    RestartSection,
    ServiceHttpCheck,
    ServiceSection,
    ServiceTcpCheck,
    TestCheck,
    ToplevelCheck,
)
from fly_emulator.config.vm_sizes import DEFAULT_GPU_SIZE, DEFAULT_SIZE, PRESETS
from fly_emulator.machine_config import (
    Check,
    Concurrency,
    Guest,
    Init,
    MachineConfig,
    Metrics,
    Port,
    Restart,
    Service,
    StopConfig,
    duration_seconds,
)

AnyCheck: TypeAlias = HttpServiceCheck | ServiceHttpCheck | ServiceTcpCheck

DEFAULT_INTERNAL_PORT = 8080
"""Source: superfly/docs `reference/configuration`, `internal_port`."""
LONGEST_KILL_TIMEOUT = 300.0
_RELEASE_GROUP = "fly_app_release_command"
_TEST_GROUP = "fly_app_test_machine_command"


def machine_config(document: FlyToml, group: str) -> MachineConfig:
    """Return the configuration of a group's machines. The document has passed `toml_rules`."""
    metrics = next(iter(of_group(document, document.metrics, group)), None)
    experimental = document.experimental
    if metrics is not None:
        scraped = Metrics(port=metrics.port, path=metrics.path)
    elif experimental and experimental.metrics_port and not document.metrics:
        scraped = Metrics(port=experimental.metrics_port, path=experimental.metrics_path or "/metrics")
    else:
        scraped = None
    return MachineConfig(
        image=document.build.image or "",
        init=_init(document, group),
        env=_env(document, group),
        guest=guest(compute_of(document, group)),
        restart=_restart(of_group(document, document.restart, group)),
        services=tuple(_service(service) for service in services_of(document, group)),
        checks=_checks(document, group),
        metrics=scraped,
        stop_config=_stop_config(document),
        metadata=_metadata(group),
        mounts=tuple(_mount(mount) for mount in of_group(document, document.mounts, group)),
        statics=tuple(_plain(static) for static in document.statics),
    )


def release_machine_config(document: FlyToml) -> MachineConfig | None:
    """Return the configuration of the machine that runs `release_command`; None without one."""
    command = shlex.split(document.deploy.release_command or "")
    if not command:
        return None
    entrypoint = document.experimental.entrypoint if document.experimental else ()
    compute = document.deploy.release_command_vm or compute_of(document, default_group(document))
    return MachineConfig(
        image=document.build.image or "",
        init=Init(cmd=tuple(command), entrypoint=entrypoint or None, swap_size_mb=document.swap_size_mb),
        env={**_env(document, _RELEASE_GROUP), "RELEASE_COMMAND": "1"},
        guest=guest(compute),
        restart=Restart(policy="no"),
        stop_config=_stop_config(document),
        metadata=_metadata(_RELEASE_GROUP),
        auto_destroy=True,
    )


def test_machine_configs(document: FlyToml, group: str) -> tuple[MachineConfig, ...]:
    """Return the machines that `fly deploy` runs to test a new one of the group, one for each machine check.

    FLY_TEST_MACHINE_IP, the address of the machine under test, is left to whoever runs them. Source: flyctl
    `machines.go`, ToTestMachineConfig; `deploy/machinebasedtest.go`, runTestMachines.
    """
    services = [document.http_service] if document.http_service else []
    serving = [s for s in (*services, *document.services) if not s.processes or group in s.processes]
    checks = [check for section in serving for check in section.machine_checks]
    tested = machine_config(document, group)
    return tuple(_test_machine(document, check, tested) for check in (*checks, *document.machine_checks))


def _test_machine(document: FlyToml, check: TestCheck, tested: MachineConfig) -> MachineConfig:
    # An image of its own stops as that image says, where the check itself says nothing.
    default = StopConfig() if check.image else _stop_config(document)
    return MachineConfig(
        image=check.image or tested.image,
        init=Init(
            cmd=check.command,
            entrypoint=check.entrypoint or tested.init.entrypoint,
            swap_size_mb=document.swap_size_mb,
        ),
        env={**tested.env, **_env(document, _TEST_GROUP), "FLY_TEST_COMMAND": "1"},
        restart=Restart(policy="no"),
        stop_config=StopConfig(
            signal=check.kill_signal or default.signal, timeout=check.kill_timeout or default.timeout
        ),
        metadata=_metadata(_TEST_GROUP),
        auto_destroy=True,
    )


def guest(compute: Compute | None) -> Guest:
    """Return the size a `[[vm]]` describes: `size` first, over it every other key."""
    if compute is None:
        return PRESETS[DEFAULT_SIZE]
    preset = PRESETS[compute.size or (DEFAULT_GPU_SIZE if compute.gpu_kind else DEFAULT_SIZE)]
    return Guest(
        cpu_kind=compute.cpu_kind or preset.cpu_kind,
        cpus=compute.cpus or preset.cpus,
        memory_mb=compute.memory_mb or compute.memory or preset.memory_mb,
    )


def clamped(duration: str, *, zero: bool = False) -> str:
    """Return a service check's duration as the platform takes it: 1 s to 1 min, 0 where `zero` allows it.

    Source: flyctl `validation.go`, validateServiceCheckDurations.
    """
    seconds = duration_seconds(duration)
    if zero and seconds == 0:
        return duration
    return format_duration(round(min(max(seconds, 1.0), 60.0) * 1e9))


def kill_timeout_of(document: FlyToml) -> str | None:
    """Return the time between signal and SIGKILL, at most 300 s; None where none is said."""
    older = document.experimental.kill_timeout if document.experimental else None
    timeout = document.kill_timeout or older
    if timeout and duration_seconds(timeout) > LONGEST_KILL_TIMEOUT:
        return format_duration(round(LONGEST_KILL_TIMEOUT * 1e9))
    return timeout


def _metadata(group: str) -> dict[str, str]:
    return {"fly_platform_version": "v2", "fly_process_group": group}


def _init(document: FlyToml, group: str) -> Init:
    command = tuple(shlex.split(document.processes.get(group, "")))
    experimental = document.experimental
    return Init(
        cmd=command or (experimental.cmd if experimental else ()) or None,
        entrypoint=(experimental.entrypoint if experimental else ()) or None,
        exec=(experimental.exec if experimental else ()) or None,
        swap_size_mb=document.swap_size_mb,
    )


def _env(document: FlyToml, group: str) -> dict[str, str]:
    env = {**document.env, "FLY_PROCESS_GROUP": group}
    if document.primary_region:
        env["PRIMARY_REGION"] = document.primary_region
    return env


def _stop_config(document: FlyToml) -> StopConfig:
    default = StopConfig()
    return StopConfig(
        signal=document.kill_signal or default.signal,
        timeout=kill_timeout_of(document) or default.timeout,
    )


def _restart(sections: list[RestartSection]) -> Restart:
    if not sections:
        return Restart()
    # The last one wins, as in flyctl.
    section = sections[-1]
    policy = "no" if section.policy == "never" else section.policy
    return Restart(policy=policy, max_retries=section.retries or Restart().max_retries)


def _service(section: HttpService | ServiceSection) -> Service:
    default = Service(internal_port=section.internal_port or DEFAULT_INTERNAL_PORT)
    limits, counted = section.concurrency, Concurrency()
    if limits:
        counted = Concurrency(
            type=limits.type or counted.type,
            soft_limit=limits.soft_limit or counted.soft_limit,
            hard_limit=limits.hard_limit or None,
        )
    autostart = section.auto_start_machines
    return Service(
        protocol="tcp" if isinstance(section, HttpService) else section.protocol,
        internal_port=default.internal_port,
        ports=_http_ports(section) if isinstance(section, HttpService) else tuple(map(_port, section.ports)),
        autostop=section.auto_stop_machines or default.autostop,
        autostart=default.autostart if autostart is None else autostart,
        min_machines_running=section.min_machines_running or 0,
        concurrency=counted,
        checks=tuple(_service_check(check) for check in checks_of(section)),
    )


def checks_of(section: HttpService | ServiceSection) -> list[AnyCheck]:
    """Return a service's checks in flyctl's order: TCP before HTTP."""
    return (
        list(section.checks)
        if isinstance(section, HttpService)
        else [*section.tcp_checks, *section.http_checks]
    )


def _http_ports(section: HttpService) -> tuple[Port, ...]:
    options = _plain(section.http_options)
    return (
        Port(port=80, handlers=("http",), force_https=section.force_https, http_options=options),
        Port(
            port=443, handlers=("http", "tls"), http_options=options, tls_options=_plain(section.tls_options)
        ),
    )


def _port(section: PortSection) -> Port:
    return Port(
        port=section.port,
        start_port=section.start_port,
        end_port=section.end_port,
        handlers=section.handlers,
        force_https=section.force_https,
        http_options=_plain(section.http_options),
        tls_options=_plain(section.tls_options),
    )


def _service_check(section: AnyCheck) -> Check:
    default = Check()
    timing: dict[str, Any] = {
        "interval": clamped(section.interval or default.interval),
        "timeout": clamped(section.timeout or default.timeout),
        "grace_period": clamped(section.grace_period or default.grace_period, zero=True),
    }
    if isinstance(section, ServiceTcpCheck):
        return Check(type="tcp", **timing)
    return Check(type="http", **timing, **_probe(section))


def _checks(document: FlyToml, group: str) -> dict[str, Check]:
    """Return the machine's own checks; one without a port takes that of the group's `[http_service]`."""
    http = document.http_service
    own_http = http if http is not None and http in services_of(document, group) else None
    fallback = (own_http.internal_port or DEFAULT_INTERNAL_PORT) if own_http else None
    mine = {name: check for name, check in document.checks.items() if of_group(document, [check], group)}
    return {name: _toplevel_check(check, fallback) for name, check in mine.items()}


def _toplevel_check(section: ToplevelCheck, fallback: int | None) -> Check:
    default = Check()
    return Check(
        type=section.type,
        port=section.port or fallback,
        interval=section.interval or default.interval,
        timeout=section.timeout or default.timeout,
        grace_period=section.grace_period or default.grace_period,
        **(_probe(section) if section.type == "http" else {}),
    )


def _probe(section: HttpServiceCheck | ServiceHttpCheck) -> dict[str, Any]:
    default = Check()
    return {
        "method": (section.method or default.method).upper(),
        "path": section.path or default.path,
        "protocol": section.protocol or default.protocol,
        "tls_skip_verify": bool(section.tls_skip_verify),
        "headers": {name: [value] for name, value in section.headers.items()},
    }


def _mount(section: Mount) -> dict[str, Any]:
    mount: dict[str, Any] = {
        "path": section.destination,
        "name": section.source,
        "extend_threshold_percent": section.auto_extend_size_threshold,
        "add_size_gb": section.auto_extend_size_increment,
        "size_gb_limit": section.auto_extend_size_limit,
    }
    return {key: value for key, value in mount.items() if value is not None}


def _plain(section: Section | None) -> dict[str, Any]:
    """Return a section as the API writes it: what is unset is left out."""
    return msgspec.json.decode(msgspec.json.encode(section)) if section is not None else {}
