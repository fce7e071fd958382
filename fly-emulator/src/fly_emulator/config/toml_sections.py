"""Every key a fly.toml may have, as flyctl knows it.

Source: superfly/flyctl ad0172f (2026-08-21) `internal/appconfig/config.go`, `service.go`, `toplevelcheck.go`,
`patches.go`; the options of ports and guests from superfly/fly-go 22d6e51 `machine_types.go`; superfly/docs
5c22c8c `reference/configuration`. What the older forms are is said in `patches.go`.
"""

# ruff: noqa: RUF012 - an empty default of a msgspec struct is made anew for each

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from fly_emulator.config.toml_forms import (
    AutostopForm,
    ChoiceForm,
    CommandForm,
    DurationForm,
    NumberForm,
    PatternForm,
    PortForm,
    SignalForm,
    SizeForm,
    WordsForm,
)
from fly_emulator.config.toml_schema import Alias, Note, Section, Single
from fly_emulator.config.toml_table_forms import (
    ChecksForm,
    ConcurrencyForm,
    EnvForm,
    HeadersForm,
    ProcessesForm,
    ResponseHeadersForm,
)
from fly_emulator.config.vm_sizes import CPUS, PRESETS
from fly_emulator.machine_config import Autostop

_Milliseconds: TypeAlias = Annotated[str | None, DurationForm("ms")]
_Nanoseconds: TypeAlias = Annotated[str | None, DurationForm("ns")]
_Groups: TypeAlias = tuple[str, ...]
_Count: TypeAlias = Annotated[int | None, NumberForm(0)]
_Gigabytes: TypeAlias = Annotated[int | None, SizeForm("GB")]
_OBSOLETE = "without effect since Apps V2: leave it out"
_HOST = "there is one host here"

Handler: TypeAlias = Literal["http", "tls", "pg_tls", "proxy_proto", "edge_http"]


class _Probe(Section, frozen=True, kw_only=True):
    method: Annotated[str | None, PatternForm(r"[A-Za-z]+", 'an HTTP method such as "GET"')] = None
    path: Annotated[str | None, PatternForm(r"/.*", 'a path that begins with "/"')] = None
    protocol: Literal["http", "https"] | None = None
    tls_skip_verify: bool | None = None
    tls_server_name: Annotated[
        str | None, Note("the check connects to the process itself; no name is asked for")
    ] = None


class HttpServiceCheck(_Probe, frozen=True, kw_only=True):
    """`[[http_service.checks]]`. Here, unlike below, flyctl patches nothing."""

    interval: _Nanoseconds = None
    timeout: _Nanoseconds = None
    grace_period: _Nanoseconds = None
    headers: dict[str, str] = {}


class ServiceHttpCheck(_Probe, frozen=True, kw_only=True):
    """`[[services.http_checks]]`."""

    interval: _Milliseconds = None
    timeout: _Milliseconds = None
    grace_period: _Milliseconds = None
    headers: Annotated[dict[str, str], HeadersForm()] = {}
    restart_limit: Annotated[Any, Note(_OBSOLETE)] = None


class ServiceTcpCheck(Section, frozen=True, kw_only=True):
    """`[[services.tcp_checks]]`."""

    interval: _Milliseconds = None
    timeout: _Milliseconds = None
    grace_period: _Milliseconds = None
    restart_limit: Annotated[Any, Note(_OBSOLETE)] = None


class ToplevelCheck(ServiceHttpCheck, frozen=True, kw_only=True):
    """`[checks.NAME]`: of the machine, without influence on routing."""

    type: Literal["http", "tcp"]
    port: Annotated[int | None, PortForm(strings=False)] = None
    processes: _Groups = ()


class TestCheck(Section, frozen=True, kw_only=True):
    """`[[machine_checks]]`: a machine that `fly deploy` runs beside the new one."""

    command: tuple[str, ...]
    image: str = ""
    entrypoint: tuple[str, ...] = ()
    kill_signal: Annotated[str | None, SignalForm()] = None
    kill_timeout: _Nanoseconds = None


_TestChecks: TypeAlias = Annotated[
    tuple[TestCheck, ...], Note("`fly deploy` runs these; they are checked for form here and not run")
]


class TlsOptions(Section, frozen=True, kw_only=True):
    """How the edge terminates TLS."""

    alpn: tuple[str, ...] = ()
    versions: tuple[Literal["TLSv1.2", "TLSv1.3"], ...] = ()
    default_self_signed: bool | None = None


class ReplayCache(Section, frozen=True, kw_only=True):
    """How long the edge remembers a `fly-replay`."""

    path_prefix: str
    ttl_seconds: Annotated[int, NumberForm(10)]
    type: Literal["cookie", "header"]
    name: str
    allow_bypass: bool | None = None


class ResponseOptions(Section, frozen=True, kw_only=True):
    """What the edge does to response headers."""

    headers: Annotated[dict[str, Any], ResponseHeadersForm()] = {}
    pristine: bool | None = None


class HttpOptions(Section, frozen=True, kw_only=True):
    """How the edge speaks HTTP."""

    compress: bool | None = None
    response: ResponseOptions | None = None
    h2_backend: bool | None = None
    idle_timeout: Annotated[int | None, NumberForm(0, 2**32 - 1)] = None
    headers_read_timeout: Annotated[int | None, NumberForm(0, 2**32 - 1)] = None
    replay_cache: tuple[ReplayCache, ...] = ()


class ProxyProtoOptions(Section, frozen=True, kw_only=True):
    """Which PROXY protocol the app reads."""

    version: Literal["v1", "v2"] | None = None


class ConcurrencyLimits(Section, frozen=True, kw_only=True):
    """`[http_service.concurrency]`, `[services.concurrency]`."""

    type: Literal["connections", "requests"] | None = None
    hard_limit: _Count = None
    soft_limit: _Count = None


class _Autostart(Section, frozen=True, kw_only=True):
    auto_stop_machines: Annotated[Autostop | None, AutostopForm()] = None
    auto_start_machines: bool | None = None
    min_machines_running: _Count = None
    processes: _Groups = ()
    machine_checks: _TestChecks = ()


class HttpService(_Autostart, frozen=True, kw_only=True):
    """`[http_service]`: ports 80 and 443."""

    internal_port: Annotated[int | None, PortForm(strings=False)] = None
    force_https: bool = False
    concurrency: ConcurrencyLimits | None = None
    tls_options: TlsOptions | None = None
    http_options: HttpOptions | None = None
    checks: tuple[HttpServiceCheck, ...] = ()


class PortSection(Section, frozen=True, kw_only=True):
    """`[[services.ports]]`."""

    port: Annotated[int | None, PortForm(strings=True)] = None
    start_port: Annotated[int | None, PortForm(strings=False)] = None
    end_port: Annotated[int | None, PortForm(strings=False)] = None
    handlers: tuple[Handler, ...] = ()
    force_https: bool = False
    tls_options: TlsOptions | None = None
    http_options: HttpOptions | None = None
    proxy_proto_options: Annotated[
        ProxyProtoOptions | None, Note("the edge here does not write PROXY headers")
    ] = None


class ServiceSection(_Autostart, frozen=True, kw_only=True):
    """`[[services]]`."""

    protocol: Literal["tcp", "udp"] = "tcp"
    internal_port: Annotated[int | None, PortForm(strings=True)] = None
    ports: Annotated[tuple[PortSection, ...], Single()] = ()
    concurrency: Annotated[ConcurrencyLimits | None, ConcurrencyForm()] = None
    tcp_checks: Annotated[tuple[ServiceTcpCheck, ...], Single()] = ()
    http_checks: Annotated[tuple[ServiceHttpCheck, ...], Single()] = ()
    script_checks: Annotated[Any, Note(_OBSOLETE)] = None


class Compute(Section, frozen=True, kw_only=True):
    """`[[vm]]`: the size, over which every other key wins."""

    size: Annotated[
        str | None,
        ChoiceForm(tuple(PRESETS)),
    ] = None
    memory: Annotated[int | None, SizeForm("MiB")] = None
    cpu_kind: Literal["shared", "performance"] | None = None
    cpus: Annotated[int | None, ChoiceForm(CPUS)] = None
    memory_mb: Annotated[int | None, NumberForm(1)] = None
    max_memory_mb: Annotated[int | None, NumberForm(1), Note("memory does not grow here")] = None
    gpus: Annotated[int | None, NumberForm(0), Note("there is no GPU here")] = None
    gpu_kind: Annotated[str | None, Note("there is no GPU here")] = None
    host_dedication_id: Annotated[str | None, Note(_HOST)] = None
    persist_rootfs: Annotated[
        Literal["never", "always", "restart"] | None, Note("a process has no root filesystem of its own")
    ] = None
    kernel_args: Annotated[tuple[str, ...], WordsForm(), Note("there is no kernel of its own")] = ()
    processes: _Groups = ()


class DeploySection(Section, frozen=True, kw_only=True):
    """`[deploy]`."""

    strategy: Literal["rolling", "immediate", "canary", "bluegreen"] = "rolling"
    max_unavailable: Annotated[float | None, NumberForm(0, whole=False)] = None
    wait_timeout: _Nanoseconds = None
    release_command: Annotated[str | None, CommandForm()] = None
    release_command_timeout: _Nanoseconds = None
    release_command_vm: Compute | None = None
    seed_command: Annotated[str | None, CommandForm(), Note("`fly launch` runs it; it is not run here")] = (
        None
    )


class Compose(Section, frozen=True, kw_only=True):
    """`[build.compose]`."""

    file: str | None = None


class BuildSection(Section, frozen=True, kw_only=True):
    """`[build]`: nothing is built here, so its keys are checked and kept."""

    builder: str | None = None
    args: dict[str, str] = {}
    buildpacks: tuple[str, ...] = ()
    image: str | None = None
    settings: dict[str, Any] = {}
    builtin: str | None = None
    dockerfile: str | None = None
    ignorefile: str | None = None
    build_target: Annotated[str | None, Alias(("build_target",))] = msgspec.field(
        default=None, name="build-target"
    )
    compose: Annotated[Compose | None, Note("containers beside the app are not run here")] = None
    compression: Literal["gzip", "zstd"] | None = None
    compression_level: Annotated[int | None, NumberForm(0, 9)] = None


class AttachedSecrets(Section, frozen=True, kw_only=True):
    """`[experimental.attached.secrets]`."""

    export: dict[str, str] = {}


class Attached(Section, frozen=True, kw_only=True):
    """`[experimental.attached]`."""

    secrets: AttachedSecrets | None = None


class Experimental(Section, frozen=True, kw_only=True):
    """`[experimental]`."""

    cmd: Annotated[tuple[str, ...], WordsForm()] = ()
    entrypoint: Annotated[tuple[str, ...], WordsForm()] = ()
    exec: Annotated[tuple[str, ...], WordsForm()] = ()
    auto_rollback: Annotated[bool | None, Note(_OBSOLETE)] = None
    enable_consul: Annotated[bool | None, Note("there is no Consul here: FLY_CONSUL_URL is not set")] = None
    enable_etcd: Annotated[bool | None, Note("there is no etcd here")] = None
    lazy_load_images: Annotated[bool | None, Note("there are no images here")] = None
    attached: Annotated[Attached | None, Note("attached secrets are not set here")] = None
    machine_config: Annotated[str | None, Note("containers beside the app are not run here")] = None
    kill_timeout: Annotated[
        str | None, DurationForm("s"), Note("the older place: write kill_timeout at the top")
    ] = None
    metrics_port: Annotated[
        int | None, PortForm(strings=False), Note("the older place: write [metrics] with port")
    ] = None
    metrics_path: Annotated[str | None, Note("the older place: write [metrics] with path")] = None
    allowed_public_ports: Annotated[Any, Note(_OBSOLETE)] = None
    private_network: Annotated[Any, Note(_OBSOLETE)] = None


class Mount(Section, frozen=True, kw_only=True):
    """`[[mounts]]`."""

    source: str
    destination: Annotated[str, PatternForm(r"(?!/$).+", 'a directory other than "/"')]
    initial_size: _Gigabytes = None
    snapshot_retention: Annotated[int | None, NumberForm(1, 60)] = None
    scheduled_snapshots: bool | None = None
    auto_extend_size_threshold: Annotated[int | None, NumberForm(50, 99)] = None
    auto_extend_size_increment: _Gigabytes = None
    auto_extend_size_limit: _Gigabytes = None
    processes: _Groups = ()


class RestartSection(Section, frozen=True, kw_only=True):
    """`[[restart]]`."""

    policy: Literal["always", "never", "on-failure"]
    retries: _Count = None
    processes: _Groups = ()


class StaticSection(Section, frozen=True, kw_only=True):
    """`[[statics]]`."""

    guest_path: str
    url_prefix: Annotated[str, PatternForm(r"/.*", 'a path that begins with "/"')]
    tigris_bucket: Annotated[str | None, Note("there is no object storage here")] = None
    index_document: str | None = None


class MetricsSection(Section, frozen=True, kw_only=True):
    """`[metrics]`."""

    port: Annotated[int, PortForm(strings=False)]
    path: Annotated[str, PatternForm(r"/.*", 'a path that begins with "/"')] = "/metrics"
    https: Annotated[bool | None, Note("metrics are read without TLS here")] = None
    processes: _Groups = ()


class FileSection(Section, frozen=True, kw_only=True):
    """`[[files]]`."""

    guest_path: Annotated[str, PatternForm(r"/.+", "an absolute path")]
    local_path: str | None = None
    secret_name: str | None = None
    raw_value: str | None = None
    processes: _Groups = ()


class FlyToml(Section, frozen=True, kw_only=True):
    """The whole file."""

    app: Annotated[
        str | None, PatternForm(r"[a-z0-9][a-z0-9-]*", "a name of lower-case letters, digits and dashes")
    ] = None
    primary_region: Annotated[
        str | None, PatternForm(r"[a-z]{3}", 'a region\'s three letters, such as "fra"')
    ] = None
    kill_signal: Annotated[str | None, SignalForm()] = None
    kill_timeout: Annotated[str | None, DurationForm("s")] = None
    swap_size_mb: Annotated[int | None, NumberForm(0)] = None
    console_command: Annotated[str | None, CommandForm()] = None
    experimental: Experimental | None = None
    build: BuildSection = BuildSection()
    deploy: DeploySection = DeploySection()
    env: Annotated[dict[str, str], EnvForm()] = {}
    processes: Annotated[dict[str, str], ProcessesForm()] = {}
    mounts: Annotated[tuple[Mount, ...], Single(documented=True), Alias(("mount",))] = ()
    http_service: HttpService | None = None
    services: Annotated[tuple[ServiceSection, ...], Single()] = ()
    checks: Annotated[dict[str, ToplevelCheck], ChecksForm()] = {}
    files: Annotated[tuple[FileSection, ...], Note("files are not written: a process has no guest")] = ()
    host_dedication_id: Annotated[str | None, Note(_HOST)] = None
    machine_config: Annotated[str | None, Note("containers beside the app are not run here")] = None
    container: Annotated[str | None, Note("containers beside the app are not run here")] = None
    machine_checks: _TestChecks = ()
    restart: tuple[RestartSection, ...] = ()
    vm: Annotated[tuple[Compute, ...], Single(documented=True), Alias(("compute", "computes"))] = ()
    statics: tuple[StaticSection, ...] = ()
    metrics: Annotated[tuple[MetricsSection, ...], Single(documented=True), Alias(("metric",))] = ()
