"""Several dozen fly.toml, shaped as public projects' are, and what flyctl makes of them.

The files in shapes/ are our own; each follows the shape of real ones (fly-apps/postgres-flex, fly-apps/redis,
fly-apps/grafana, superfly/litefs-example, files written by `fly launch` since 2021, and their older forms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fly_emulator.config.fly_toml import AppConfig, load

SHAPES = Path(__file__).parent / "shapes"

# What each comes to: a path (`machines` is by group; numbers count in tuples) and what stands there.
# `warnings`: a piece of each, in their order.
FACTS: dict[str, dict[str, Any]] = {
    "phoenix": {
        "primary_region": "arn",
        "deploy.release_command": "/app/bin/migrate",
        "deploy.strategy": "rolling",
        "machines.app.stop_config.signal": "SIGTERM",
        "machines.app.stop_config.timeout": "5s",
        "machines.app.services.0.autostop": "stop",
        "machines.app.services.0.concurrency.hard_limit": 1000,
        "machines.app.guest.memory_mb": 1024,
        "machines.app.env.PRIMARY_REGION": "arn",
    },
    "rails-sidekiq": {
        "machines": {"jobs", "web"},
        "console_command": "/rails/bin/rails console",
        "machines.web.init.cmd": ("bundle", "exec", "puma", "-b", "tcp://[::]:3000"),
        "machines.web.init.swap_size_mb": 512,
        "machines.web.guest.cpus": 2,
        "machines.web.services.0.checks.0.headers": {"X-Forwarded-Proto": ["https"]},
        "machines.jobs.services": (),
        "machines.jobs.guest.memory_mb": 1024,
        "machines.jobs.env.FLY_PROCESS_GROUP": "jobs",
        "machines.jobs.metadata.fly_process_group": "jobs",
        "machines.jobs.statics.0.url_prefix": "/",
    },
    "laravel": {
        "machines": {"app", "cron", "worker"},
        "machines.app.init.cmd": None,
        "machines.worker.init.cmd": ("php", "artisan", "queue:listen"),
        "machines.cron.services": (),
        "build.args": {"NODE_VERSION": "20", "PHP_VERSION": "8.3"},
    },
    "django-statics": {
        "machines.app.statics": (
            {"guest_path": "/code/static", "url_prefix": "/static/"},
            {"guest_path": "/code/media", "url_prefix": "/media/"},
        ),
    },
    "fastapi-suspend": {
        "machines.app.services.0.autostop": "suspend",
        "machines.app.stop_config.timeout": "2m0s",
        "machines.app.env.WEB_CONCURRENCY": "1",
        "machines.app.env.DEBUG": "false",
        "machines.app.guest.memory_mb": 512,
        "warnings": ["WEB_CONCURRENCY (1), DEBUG (false)"],
    },
    "nextjs": {
        "build.build_target": "runner",
        "build.dockerfile": "apps/web/Dockerfile",
        "machines.app.services.0.checks.0.method": "GET",
        "machines.app.services.0.checks.0.grace_period": "10s",
    },
    "remix-litefs": {
        "machines.app.services.0.checks.0.type": "tcp",
        "machines.app.services.0.checks.1.path": "/resources/healthcheck",
        "machines.app.mounts": ({"path": "/data", "name": "data"},),
        "warnings": [
            "processes: the older list",
            "experimental.auto_rollback",
            "no Consul here",
            "services[0].script_checks",
            "services[0].tcp_checks[0].restart_limit",
        ],
    },
    "go-minimal": {
        "primary_region": None,
        "machines": {"app"},
        "machines.app.services.0.ports.0.handlers": ("http",),
        "machines.app.services.0.ports.1.handlers": ("http", "tls"),
        "machines.app.services.0.concurrency.type": "connections",
        "machines.app.services.0.concurrency.soft_limit": 20,
        "machines.app.services.0.concurrency.hard_limit": None,
        "machines.app.services.0.autostop": "off",
        "machines.app.services.0.autostart": True,
        "machines.app.stop_config.signal": "SIGINT",
        "machines.app.restart.policy": "on-failure",
        "machines.app.guest.memory_mb": 256,
        "machines.app.env": {"FLY_PROCESS_GROUP": "app"},
    },
    "bun-elysia": {
        "machines.app.services.0.ports.0.http_options": {"idle_timeout": 600},
        "machines.app.services.0.ports.1.http_options": {"idle_timeout": 600},
        "machines.app.init.cmd": ("bun", "run", "src/index.ts"),
    },
    "deno-fresh": {"machines.app.services.0.autostop": "stop", "warnings": ['write "stop"']},
    "static-nginx": {
        "machines.app.image": "nginx:1.27-alpine",
        "machines.app.services.0.internal_port": 80,
        "machines.app.services.0.ports.0.force_https": True,
        "machines.app.services.0.ports.1.force_https": False,
    },
    "tigris-statics": {
        "machines.app.statics.0.index_document": "index.html",
        "warnings": ["no object storage"],
    },
    "pocketbase": {
        "machines.app.mounts.0.name": "pb_data",
        "machines.app.services.0.concurrency.soft_limit": 500,
    },
    "litefs-proxy": {
        "machines.app.init.cmd": ("litefs", "mount", "--", "/usr/local/bin/feed", "-listen", ":8081"),
        "machines.app.services.0.min_machines_running": 1,
        "warnings": ["no Consul here"],
    },
    "grafana": {
        "machines.app.services.0.checks.0.interval": "1m0s",
        "machines.app.services.0.checks.0.grace_period": "1m0s",
    },
    "postgres": {
        "app": "given",
        "machines.app.services": (),
        "machines.app.checks.pg.port": 5500,
        "machines.app.checks.pg.method": "GET",
        "machines.app.checks.role.interval": "15s",
        "machines.app.checks.role.grace_period": "30s",
        "machines.app.metrics.port": 9187,
        "machines.app.stop_config.timeout": "5m0s",
        "machines.app.env.PRIMARY_REGION": "ord",
    },
    "redis-public": {
        "machines.app.services.0.ports.0.port": 10000,
        "machines.app.services.0.checks.0.interval": "10s",
        "warnings": ["leave the quotes out"],
    },
    "minecraft-java": {
        "machines.app.services.0.ports.0.handlers": (),
        "machines.app.guest.cpu_kind": "performance",
        "machines.app.mounts.0": {
            "path": "/data",
            "name": "world",
            "extend_threshold_percent": 80,
            "add_size_gb": 1,
            "size_gb_limit": 20,
        },
    },
    "minecraft-bedrock": {
        "machines.app.services.0.protocol": "udp",
        "machines.app.services.0.ports.0.port": 19132,
    },
    "wireguard": {"machines.app.services.0.protocol": "udp", "machines.app.services.1.protocol": "tcp"},
    "turn-range": {
        "machines.app.services.1.ports.0.port": None,
        "machines.app.services.1.ports.0.start_port": 8080,
        "machines.app.services.1.ports.0.end_port": 8085,
    },
    "worker-groups": {
        "machines.web.metrics.path": "/metrics",
        "machines.worker.metrics.path": "/stats",
        "machines.cron.metrics": None,
        "machines.worker.guest.memory_mb": 2048,
        "machines.cron.guest.memory_mb": 256,
        "machines.web.restart.policy": "on-failure",
        "machines.web.restart.max_retries": 5,
        "machines.cron.restart.policy": "always",
        "machines.worker.checks.queue.path": "/alive",
        "machines.web.checks": {},
    },
    "two-http-services": {
        "machines.api.services.0.internal_port": 8080,
        "machines.admin.services.0.internal_port": 9000,
        "machines.admin.services.0.checks.0.path": "/ping",
    },
    "gpu-ollama": {"machines.app.guest.memory_mb": 32768, "warnings": ["vm[0].size: there is no GPU"]},
    "gpu-kind": {
        "machines.app.guest.cpus": 8,
        "machines.app.guest.memory_mb": 65536,
        "warnings": ["vm[0].gpu_kind", "vm[0].gpus"],
    },
    "nats-cluster": {"machines.app.services.0.checks.0.type": "tcp", "machines.app.metrics.port": 7777},
    "mqtt-tls": {
        "machines.app.services.0.ports.0.tls_options": {"alpn": ["mqtt"], "versions": ["TLSv1.2", "TLSv1.3"]},
    },
    "grpc-h2": {
        "machines.app.services.0.ports.0.http_options": {"h2_backend": True},
        "machines.app.services.0.ports.0.tls_options": {},
        "machines.app.services.0.ports.1.tls_options.default_self_signed": False,
    },
    "pg-tls": {
        "machines.app.services.0.ports.0.handlers": ("pg_tls",),
        "machines.app.services.0.concurrency.soft_limit": 500,
    },
    "proxy-proto": {
        "machines.app.services.0.ports.0.handlers": ("proxy_proto",),
        "warnings": ["proxy_proto_options"],
    },
    "launch-2021": {
        "machines": {"app"},
        "machines.app.services.0.concurrency.hard_limit": 25,
        "warnings": [
            "launch-2021.toml:7: processes",
            "allowed_public_ports",
            "auto_rollback",
            "script_checks",
            "restart_limit",
        ],
    },
    "services-table": {
        "machines.app.services.0.concurrency.type": "requests",
        "machines.app.services.0.concurrency.soft_limit": 20,
        "machines.app.services.0.concurrency.hard_limit": 25,
        "machines.app.services.0.checks.1.timeout": "1m0s",
        "machines.app.services.0.checks.1.grace_period": "1s",
        "machines.app.services.0.checks.1.headers": {"Host": ["timeclock.example"]},
        "warnings": [
            "write [[services]]",
            "services.concurrency",
            "write [[services.ports]]",
            "write [[services.tcp_checks]]",
            "1m30s is outside 1s to 1m",
            "500ms is outside 1s to 1m",
            "headers: the older list",
        ],
    },
    "env-list": {
        "env": {"ONE": "1", "TWO": "2", "RATE": "0.5", "ON": "true"},
        "warnings": ["TWO (2), RATE (0.5), ON (true); the older list of tables"],
    },
    "processes-list": {
        "machines": {"web", "worker"},
        "machines.web.init.cmd": ("./web", "--port", "8080"),
        "warnings": ["processes: the older list"],
    },
    "discord-bot": {
        "machines.app.services": (),
        "machines.app.restart.policy": "always",
        "build.buildpacks": ("docker.io/paketobuildpacks/nodejs",),
    },
    "batch-job": {
        "machines.app.restart.policy": "no",
        "machines.app.init.cmd": ("python", "-m", "nightly", "--since", "1 day ago"),
    },
    "checks-list": {
        "machines.app.checks.listening.interval": "15s",
        "machines.app.checks.status.headers": {"Authorization": ["Bearer x"], "X-Count": ["3"]},
        "warnings": ["checks: the older list"],
    },
    "check-without-port": {"machines.app.checks.alive.port": 4000},
    "canary-machine-checks": {
        "deploy.strategy": "canary",
        "deploy.max_unavailable": 1,
        "deploy.wait_timeout": "10m0s",
        "deploy.release_command_timeout": "3m0s",
        "warnings": ["http_service.machine_checks"],
    },
    "bluegreen": {"deploy.strategy": "bluegreen", "deploy.wait_timeout": "2m30s"},
    "replay-cache": {
        "machines.app.services.0.ports.1.http_options.compress": False,
        "machines.app.services.0.ports.1.http_options.response.headers.Server": False,
        "machines.app.services.0.ports.1.http_options.replay_cache.0.ttl_seconds": 300,
    },
    "services-implicit": {
        "machines.app.services.0.internal_port": 5000,
        "machines.app.services.1.internal_port": 8080,
        "machines.app.services.1.concurrency.soft_limit": 20,
        "warnings": [
            "services: one table",
            "services.internal_port: not set: 8080",
            "port 80 leads to http_service already",
            "port 443 leads to http_service already",
        ],
    },
    "bare-ports": {
        "machines.app.services.0.ports.0.handlers": (),
        "machines.app.services.0.ports.1.handlers": (),
        "machines.app.services.0.ports.1.port": 443,
    },
    "files": {"warnings": ["files are not written"]},
    "image-command": {
        "machines.app.init.entrypoint": ("/usr/bin/tini",),
        "machines.app.init.cmd": ("serve", "--all"),
    },
    "image-exec": {"machines.app.init.exec": ("/bin/direct", "run"), "machines.app.init.cmd": None},
    "older-places": {
        "machines.app.stop_config.timeout": "30s",
        "machines.app.metrics.port": 9000,
        "machines.app.metrics.path": "/foo",
        "warnings": ["kill_timeout at the top", "metrics_port", "metrics_path"],
    },
    "aliases": {
        "build.build_target": "release",
        "machines.app.mounts.0.name": "data",
        "machines.app.guest.memory_mb": 1024,
        "machines.app.metrics.port": 9100,
        "warnings": ["write build-target", "write mounts", "write vm", "write metrics"],
    },
    "inline-tables": {
        "deploy.strategy": "immediate",
        "machines.app.services.0.concurrency.soft_limit": 50,
        "machines.app.guest.cpus": 2,
        "env": {"LOG_LEVEL": "info"},
    },
    "flycast": {"machines.app.services.0.ports.0.force_https": False},
    "mounts-by-group": {
        "machines.db.mounts.0.name": "db_data",
        "machines.search.mounts": ({"path": "/var/lib/search", "name": "search_data"},),
    },
    "group-without-app": {
        "machines.beta.metrics.port": 9091,
        "machines.beta.checks.unnamed.port": 1,
        "machines.zeta.metrics": None,
        "machines.zeta.checks": {},
    },
    "dedicated-host": {
        "machines.app.guest.memory_mb": 4096,
        "warnings": ["host_dedication_id", "kernel_args", "persist_rootfs", "max_memory_mb"],
    },
    "containers": {"warnings": ["machine_config", "container:", "build.compose"]},
    "build-options": {
        "build.compression": "zstd",
        "build.compression_level": 3,
        "build.settings": {"foo": 1},
    },
    "hardly-meant": {
        "machines.app.stop_config.timeout": "5m0s",
        "machines.app.env.PRIMARY_REGION": "fra",
        "machines.app.services.0.checks.0.interval": "1s",
        "warnings": [
            "10m0s is more than Fly allows",
            "names that begin with FLY_",
            "env.PRIMARY_REGION",
            "more than one way to build: image, dockerfile",
            "without effect on strategy immediate",
            "swap_size_mb rules out suspend",
            "4096 MiB are too many to suspend",
            "never started again",
            "30 is above hard_limit 25",
            "nanoseconds",
            "10µs is outside 1s to 1m",
            "UDP has none",
            "port 80 leads to http_service already",
            "it needs handlers",
            "1 shared CPU can have 256 to 2048 MiB",
        ],
    },
}


def looked_up(value: Any, path: str) -> Any:
    for step in path.split("."):
        if isinstance(value, AppConfig) and step == "machines":
            value = value.machines()
        elif isinstance(value, Mapping):
            value = value[step]
        elif isinstance(value, Sequence):
            value = value[int(step)]
        else:
            value = getattr(value, step)
    return set(value) if path == "machines" else value


def test_every_shape_has_its_facts() -> None:
    assert {path.stem for path in SHAPES.glob("*.toml")} == set(FACTS)


@pytest.mark.parametrize("shape", FACTS)
def test_a_real_shape_parses(shape: str) -> None:
    facts = dict(FACTS[shape])
    warnings: list[str] = facts.pop("warnings", [])

    config = load(SHAPES / f"{shape}.toml", app="given" if shape == "postgres" else None)

    assert {path: looked_up(config, path) for path in facts} == facts
    assert len(config.warnings) == len(warnings), config.warnings
    assert [piece for piece, text in zip(warnings, config.warnings, strict=True) if piece not in text] == []
    assert all(warning.startswith(f"{SHAPES / shape}.toml:") for warning in config.warnings)
