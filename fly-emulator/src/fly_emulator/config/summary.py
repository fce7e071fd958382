"""What a fly.toml comes to, in a few lines for the operator."""

from __future__ import annotations

from fly_emulator.config.fly_toml import AppConfig
from fly_emulator.machine_config import MachineConfig, Port, Service


def summary(config: AppConfig) -> str:
    """Return the app, its release command, and each group's machines with what the edge offers of them."""
    region = config.primary_region or "any region"
    lines = [f"{config.app} in {region}, deployed {config.deploy.strategy}"]
    if config.deploy.release_command:
        lines.append(f"before a release: {config.deploy.release_command}")
    for group, machine in config.machines().items():
        lines += _machine(group, machine)
    return "\n".join(lines)


def _machine(group: str, machine: MachineConfig) -> list[str]:
    guest, stop, restart = machine.guest, machine.stop_config, machine.restart
    command = " ".join(machine.init.exec or machine.init.cmd or ())
    cpus = f"{guest.cpus} {guest.cpu_kind} CPU{'s' if guest.cpus > 1 else ''}"
    retries = "" if restart.policy == "no" else f" (at most {restart.max_retries} times)"
    lines = [
        f"{group}: {cpus}, {guest.memory_mb} MiB" + (f", runs {command}" if command else ""),
        f"  stop: {stop.signal}, SIGKILL after {stop.timeout}; restart: {restart.policy}{retries}",
        *(_service(service) for service in machine.services),
    ]
    lines += [f"  check {name}: {check.type} on port {check.port}" for name, check in machine.checks.items()]
    lines += [f"  volume {mount['name']} at {mount['path']}" for mount in machine.mounts]
    if machine.metrics:
        lines.append(f"  metrics: port {machine.metrics.port}{machine.metrics.path}")
    return lines


def _service(service: Service) -> str:
    limits = service.concurrency
    hard = limits.hard_limit or "none"
    checks = f"{len(service.checks)} check{'' if len(service.checks) == 1 else 's'}"
    wake = "on" if service.autostart else "off"
    ports = ", ".join(map(_port, service.ports)) or "no port"
    return (
        f"  {service.protocol} {ports} -> {service.internal_port}: {limits.type}, "
        f"soft limit {limits.soft_limit}, hard limit {hard}; autostop {service.autostop}, autostart {wake}, "
        f"at least {service.min_machines_running} running; {checks}"
    )


def _port(port: Port) -> str:
    number = str(port.port) if port.port else f"{port.start_port}-{port.end_port}"
    handlers = "+".join(port.handlers)
    return " ".join(part for part in (number, handlers, "to https" if port.force_https else "") if part)
