"""The fly.toml that is deployed keeps what the server and its documentation rely on."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fly_emulator.config.fly_toml import load
from fly_emulator.machine_config import Check, Concurrency, Guest, Metrics, Restart, duration_seconds

FLY_TOML = Path(__file__).parents[2] / "agent-backend" / "fly.toml"
STAGING = FLY_TOML.with_name("fly.staging.toml")


def test_production_loads_without_a_warning() -> None:
    config = load(FLY_TOML)

    assert config.warnings == ()
    assert (config.app, config.primary_region) == ("myhealth-agents", "fra")
    assert (config.deploy.strategy, config.deploy.release_command) == ("rolling", "agent-backend migrate")
    assert list(config.machines()) == ["app"]


def test_production_machines() -> None:
    machine = load(FLY_TOML).machines()["app"]
    (service,) = machine.services

    assert (service.autostop, service.autostart, service.min_machines_running) == ("off", True, 0)
    assert service.concurrency == Concurrency(type="requests", soft_limit=200, hard_limit=None)
    assert service.ports[0].force_https
    assert service.checks == (Check(path="/readyz", interval="15s", timeout="3s", grace_period="10s"),)
    assert machine.metrics == Metrics(port=9091, path="/metrics")
    assert machine.restart == Restart(policy="on-failure", max_retries=10)
    assert machine.guest == Guest(memory_mb=512)
    # Swap would rule out suspend.
    assert machine.init.swap_size_mb is None


def test_what_the_server_is_told_agrees_with_what_fly_does() -> None:
    machine = load(FLY_TOML).machines()["app"]
    env, (service,) = machine.env, machine.services

    assert machine.stop_config.signal == "SIGTERM"
    assert duration_seconds(machine.stop_config.timeout) > float(env["DRAIN_SECONDS"])
    assert env["PORT"] == str(service.internal_port)
    assert machine.metrics is not None
    assert env["METRICS_PORT"] == str(machine.metrics.port)
    # The server sleeps by itself: the proxy must not, and a sleep must not be taken for a crash.
    assert (env["SLEEP"], service.autostop, machine.restart.policy) == ("exit", "off", "on-failure")


def test_staging_is_production_but_for_its_name_and_how_soon_it_sleeps() -> None:
    staging = tomllib.loads(STAGING.read_text(encoding="utf-8"))
    production = tomllib.loads(FLY_TOML.read_text(encoding="utf-8"))

    assert (staging.pop("app"), production.pop("app")) == ("myhealth-agents-staging", "myhealth-agents")
    environments = [each["env"].pop("ENVIRONMENT") for each in (staging, production)]
    assert environments == ["staging", "production"]
    assert float(staging["env"].pop("IDLE_SECONDS")) < float(production["env"].pop("IDLE_SECONDS"))
    assert staging == production
    assert load(STAGING).warnings == ()
