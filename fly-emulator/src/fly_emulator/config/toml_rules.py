"""What a fly.toml must keep beyond the form of its single keys.

Source: superfly/flyctl ad0172f (2026-08-21) `internal/appconfig/validation.go`, `machines.go`; where it is
silent, superfly/docs 5c22c8c `reference/configuration`. Refused is what a deploy would refuse; what a deploy
would take but its author can hardly mean is a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fly_emulator.config.toml_groups import Grouped, belongs, compute_of, group_names, of_group, services_of
from fly_emulator.config.toml_machines import (
    DEFAULT_INTERNAL_PORT,
    LONGEST_KILL_TIMEOUT,
    checks_of,
    clamped,
    guest,
)
from fly_emulator.config.toml_schema import Findings, Section, did_you_mean, nearest
from fly_emulator.config.toml_sections import (
    Compute,
    FileSection,
    FlyToml,
    HttpService,
    Mount,
    PortSection,
    ServiceSection,
)
from fly_emulator.config.vm_sizes import GPU_SIZES, MEMORY_PER_CPU
from fly_emulator.machine_config import duration_seconds

_MOST_STATICS = 10
_MOST_SUSPENDED_MB = 2048


class Rules:
    """Judges one document. What its form was refused for already is not refused again."""

    def __init__(self, document: FlyToml, findings: Findings) -> None:
        self.document = document
        self.findings = findings
        keys = [problem.key for problem in findings.problems]
        self._spoilt = {key.rpartition(".")[0] for key in keys} | set(keys)
        # Where [processes] itself is wrong or misspelt, nothing can be said about the groups others name.
        self._groups_known = not any(
            problem.key.startswith("processes") or problem.hint == "did you mean processes?"
            for problem in findings.problems
        )

    def check(self) -> None:
        """Add to the findings what is wrong."""
        self._top()
        self._deploy()
        self._groups()
        for section in [*self._services()]:
            self._service(section)
        self._same_port()
        self._checks()
        self._mounts()
        self._machines()
        self._statics()
        for file in self.document.files:
            self._file(file)

    def _refuse(self, section: Section, name: str, found: str, expected: str, hint: str = "") -> None:
        place = self.findings.place(section)
        if place not in self._spoilt:
            self.findings.refuse(_under(place, name), found, expected, hint)

    def _warn(self, section: Section, name: str, text: str) -> None:
        self.findings.warn(_under(self.findings.place(section), name), text)

    def _services(self) -> list[HttpService | ServiceSection]:
        http = [self.document.http_service] if self.document.http_service else []
        return [*http, *self.document.services]

    def _top(self) -> None:
        document = self.document
        for name in ("kill_timeout", "experimental.kill_timeout"):
            source = document if name == "kill_timeout" else document.experimental
            given = source.kill_timeout if source else None
            if given and duration_seconds(given) > LONGEST_KILL_TIMEOUT:
                self.findings.warn(name, f"{given} is more than Fly allows: lowered to 5m0s")
        region, own = document.primary_region, document.env.get("PRIMARY_REGION")
        if region and own is not None and own != region:
            self.findings.warn("env.PRIMARY_REGION", f"primary_region sets it to {region}")
        build = document.build
        ways = {
            "image": build.image,
            "builder": build.builder or build.buildpacks,
            "dockerfile": build.dockerfile or build.build_target,
            "builtin": build.builtin,
        }
        if len(given := [name for name, value in ways.items() if value]) > 1:
            self.findings.warn("build", f"more than one way to build: {', '.join(given)}")

    def _deploy(self) -> None:
        deploy = self.document.deploy
        strategy = deploy.strategy
        if deploy.max_unavailable is not None:
            if deploy.max_unavailable <= 0:
                hint = "with none unavailable a rolling deploy cannot begin; bluegreen replaces without loss"
                self._refuse(deploy, "max_unavailable", "0", "a share such as 0.33, or a number from 1", hint)
            elif strategy not in {"rolling", "canary"}:
                self._warn(deploy, "max_unavailable", f"without effect on strategy {strategy}")
        if strategy in {"canary", "bluegreen"} and self.document.mounts:
            hint = "a volume is attached to one machine at a time"
            self._refuse(
                deploy, "strategy", f'"{strategy}" with [[mounts]]', '"rolling" or "immediate"', hint
            )
        has_check = self.document.checks or any(checks_of(section) for section in self._services())
        if strategy == "bluegreen" and not has_check and not self.findings.problems:
            hint = "add [[http_service.checks]]: without one nothing says when green may take over"
            self._refuse(deploy, "strategy", '"bluegreen" without a health check', "at least one check", hint)

    def _groups(self) -> None:
        document = self.document
        names = group_names(document)
        named = [
            *self._services(),
            *document.checks.values(),
            *document.mounts,
            *document.files,
            *document.restart,
            *document.vm,
            *document.metrics,
        ]
        if not self._groups_known:
            return
        for section in named:
            self._known_groups(section, section.processes, names)
        if document.processes:
            for service in self._services():
                if not service.processes:
                    groups = ", ".join(f'"{name}"' for name in names)
                    hint = f"add processes = [{groups}], or those of them that serve it"
                    self._refuse(service, "processes", "nothing", "the groups that serve it", hint)

    def _known_groups(self, section: Section, groups: Iterable[str], names: tuple[str, ...]) -> None:
        for group in groups:
            if group not in names:
                hint = did_you_mean(nearest(group, names)) or "add it to [processes]"
                self._refuse(section, "processes", f'"{group}"', f"of the groups {', '.join(names)}", hint)

    def _service(self, section: HttpService | ServiceSection) -> None:
        if section.internal_port is None:
            self._warn(section, "internal_port", f"not set: {DEFAULT_INTERNAL_PORT}")
        limits = section.concurrency
        if limits and limits.hard_limit and (limits.soft_limit or 20) > limits.hard_limit:
            soft = limits.soft_limit or "20, the default,"
            self._warn(
                limits, "soft_limit", f"{soft} is above hard_limit {limits.hard_limit}: it is never reached"
            )
        if section.auto_stop_machines in {"stop", "suspend"} and section.auto_start_machines is False:
            self._warn(section, "auto_start_machines", "what is stopped when idle is never started again")
        for check in checks_of(section):
            for name, zero in (("interval", False), ("timeout", False), ("grace_period", True)):
                given: str | None = getattr(check, name)
                if given and (taken := clamped(given, zero=zero)) != given:
                    self._warn(check, name, f"{given} is outside 1s to 1m: Fly takes it as {taken}")
        if isinstance(section, ServiceSection):
            if not section.ports:
                self._warn(section, "ports", "no port leads to it: add [[services.ports]]")
            for port in section.ports:
                self._port(port, section)

    def _port(self, port: PortSection, service: ServiceSection) -> None:
        ranged = port.start_port is not None or port.end_port is not None
        if port.port is None and not ranged:
            self._refuse(port, "port", "nothing", "port, or start_port and end_port")
        elif port.port is not None and ranged:
            self._refuse(port, "port", "both port and a range", "port, or start_port and end_port")
        elif ranged and (port.start_port is None or port.end_port is None):
            missing = "start_port" if port.start_port is None else "end_port"
            self._refuse(port, missing, "nothing", "start_port and end_port together")
        elif port.start_port and port.end_port and port.start_port > port.end_port:
            self._refuse(port, "end_port", str(port.end_port), f"{port.start_port} or more")
        if service.protocol == "udp" and port.handlers:
            self._warn(port, "handlers", "UDP has none: leave it out")
        if port.force_https and "http" not in port.handlers:
            self._warn(port, "force_https", 'without effect: it needs handlers = ["http"]')

    def _same_port(self) -> None:
        for group in group_names(self.document):
            taken: dict[tuple[str, int], str] = {}
            for section in services_of(self.document, group):
                for protocol, port, holder in self._outer_ports(section):
                    earlier = taken.setdefault((protocol, port), holder)
                    if earlier != holder:
                        self.findings.warn(holder, f"port {port} leads to {earlier} already")

    def _outer_ports(self, section: HttpService | ServiceSection) -> list[tuple[str, int, str]]:
        place = self.findings.place
        if isinstance(section, HttpService):
            return [("tcp", 80, place(section)), ("tcp", 443, place(section))]
        return [(section.protocol, port.port, place(port)) for port in section.ports if port.port]

    def _checks(self) -> None:
        document = self.document
        for check in document.checks.values():
            if check.interval and duration_seconds(check.interval) < 2:
                self._refuse(check, "interval", check.interval, '"2s" or more')
            if check.timeout and duration_seconds(check.timeout) > 60:
                self._refuse(check, "timeout", check.timeout, '"60s" or less')
            for group in group_names(document):
                http = document.http_service
                served = http is not None and belongs(document, http, group)
                if check.port is None and belongs(document, check, group) and not served:
                    hint = f"group {group} has no [http_service] whose port it could take"
                    self._refuse(check, "port", "nothing", "the port to connect to", hint)
                    break

    def _mounts(self) -> None:
        for group in group_names(self.document):
            for mount in of_group(self.document, self.document.mounts, group)[1:]:
                self._refuse(
                    mount, "source", f'a second volume for group "{group}"', "one volume for a machine"
                )
        for mount in self.document.mounts:
            self._extension(mount)
            if not mount.destination.startswith("/"):
                self._warn(mount, "destination", "a relative path: write where it is in the image")
            if not mount.source.replace("_", "").isalnum() or mount.source != mount.source.lower():
                self._warn(mount, "source", "volume names have lower-case letters, digits and _ only")

    def _extension(self, mount: Mount) -> None:
        values = {
            "auto_extend_size_threshold": mount.auto_extend_size_threshold,
            "auto_extend_size_increment": mount.auto_extend_size_increment,
            "auto_extend_size_limit": mount.auto_extend_size_limit,
        }
        missing = [name for name, value in values.items() if value is None]
        if 0 < len(missing) < len(values):
            self._refuse(mount, missing[0], "nothing", "threshold, increment and limit together")
        for name, most in (("auto_extend_size_increment", 100), ("auto_extend_size_limit", 500)):
            if (size := values[name]) is not None and size > most:
                self._refuse(mount, name, f"{size}gb", f"at most {most}gb")

    def _machines(self) -> None:
        document = self.document
        for group in group_names(document):
            self._once(document.restart, group, "restart", "the last one counts")
            self._once(document.metrics, group, "metrics", "the first one counts")
            self._suspend(group)
        listed = Counter(group for vm in document.vm for group in (vm.processes or ("",)))
        for vm in document.vm:
            if any(listed[group] > 1 for group in (vm.processes or ("",))):
                self._warn(vm, "processes", "another [[vm]] is for the same groups: the first one counts")
            self._compute(vm)
        if document.deploy.release_command_vm:
            self._compute(document.deploy.release_command_vm)

    def _once(self, sections: Iterable[Grouped], group: str, name: str, which: str) -> None:
        if len(of_group(self.document, sections, group)) > 1:
            self.findings.warn(name, f"more than one [[{name}]] for group {group}: {which}")

    def _compute(self, vm: Compute) -> None:
        if vm.size in GPU_SIZES:
            self._warn(vm, "size", "there is no GPU here")
        if vm.memory is not None and vm.memory_mb is not None and vm.memory != vm.memory_mb:
            self._warn(vm, "memory", f"memory_mb = {vm.memory_mb} wins")
        size = guest(vm)
        least, most = (size.cpus * bound for bound in MEMORY_PER_CPU[size.cpu_kind])
        if not least <= size.memory_mb <= most:
            name = "memory_mb" if vm.memory_mb else "memory"
            kind = f"{size.cpus} {size.cpu_kind} CPU{'s' if size.cpus > 1 else ''}"
            self._warn(vm, name, f"{size.memory_mb} MiB, and {kind} can have {least} to {most} MiB")

    def _suspend(self, group: str) -> None:
        for section in services_of(self.document, group):
            if section.auto_stop_machines != "suspend":
                continue
            if self.document.swap_size_mb:
                self._warn(
                    section, "auto_stop_machines", "swap_size_mb rules out suspend: machines stop instead"
                )
            memory = guest(compute_of(self.document, group)).memory_mb
            if memory > _MOST_SUSPENDED_MB:
                text = f"{memory} MiB are too many to suspend (at most {_MOST_SUSPENDED_MB}): machines stop"
                self._warn(section, "auto_stop_machines", text)

    def _statics(self) -> None:
        prefixes: set[str] = set()
        for static in self.document.statics:
            if static.url_prefix in prefixes:
                self._warn(static, "url_prefix", f"{static.url_prefix} is taken: only one of them is served")
            prefixes.add(static.url_prefix)
        if len(self.document.statics) > _MOST_STATICS:
            count = len(self.document.statics)
            self.findings.refuse("statics", f"{count} of them", f"at most {_MOST_STATICS}")

    def _file(self, file: FileSection) -> None:
        given = [
            name for name in ("local_path", "secret_name", "raw_value") if getattr(file, name) is not None
        ]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            self._refuse(
                file, given[-1] if given else "local_path", found, "one of local_path, secret_name, raw_value"
            )


def _under(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
