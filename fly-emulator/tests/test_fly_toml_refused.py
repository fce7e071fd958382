"""What is refused, with file, line, key, what was found, what was expected, and a hint."""

from __future__ import annotations

from pathlib import Path

import pytest
from inline_snapshot import snapshot

from fly_emulator.config.fly_toml import load, parse
from fly_emulator.config.toml_problems import ConfigErrors, ConfigProblem, render

SERVICE = "[http_service]\ninternal_port = 8080\n"
PORT = "[[services]]\ninternal_port = 1\n[[services.ports]]\n"

# What follows `app = "x"`; the key; a piece of what was found, of what was expected, and of the hint.
REFUSED: dict[str, tuple[str, str, str, str, str]] = {
    # Misspelt and misplaced keys, as they stand in public files.
    "soft limit": (
        SERVICE + "[http_service.concurrency]\nsof_limit = 1",
        "http_service.concurrency.sof_limit",
        "an unknown key",
        "soft_limit",
        "did you mean soft_limit?",
    ),
    "section": (
        "[http_servce]\ninternal_port = 1",
        "http_servce",
        "an unknown key",
        "http_service",
        "http_service",
    ),
    "swap section": ("[swap]\nsize_mb = 512", "swap", "an unknown key", "swap_size_mb", "swap_size_mb"),
    "build target": (
        '[build]\ntarget = "x"',
        "build.target",
        "an unknown key",
        "build-target",
        "build-target",
    ),
    "build args key": (
        "[build]\ndocker_build_args = {}",
        "build.docker_build_args",
        "an unknown key",
        "args",
        "args",
    ),
    "wait for checks": (
        "[deploy]\nwait_health_checks = true",
        "deploy.wait_health_checks",
        "an unknown key",
        "wait_timeout",
        "",
    ),
    "max machines": (
        SERVICE + "max_machines_running = 10",
        "http_service.max_machines_running",
        "an unknown key",
        "min_machines_running",
        "min_machines_running",
    ),
    "check uri": (
        '[[services]]\ninternal_port = 1\n[[services.http_checks]]\nuri = "/h"',
        "services[0].http_checks[0].uri",
        "an unknown key",
        "path",
        "",
    ),
    "alpn outside": (
        PORT + 'port = 443\nalpn = ["h2"]',
        "services[0].ports[0].alpn",
        "an unknown key",
        "tls_options",
        "",
    ),
    "vm guest": ("[[vm]]\n[vm.guest]\ncpus = 1", "vm[0].guest", "an unknown key", "cpus", ""),
    "vm mounts": ('[vm]\n[[vm.mounts]]\nsource = "x"', "vm.mounts", "an unknown key", "processes", ""),
    "mount size": (
        '[mounts]\nsource = "d"\ndestination = "/d"\nsize_gb = 1',
        "mounts.size_gb",
        "an unknown key",
        "initial_size",
        "",
    ),
    "second check": (
        SERVICE + '[[http_service.checks]]\npath = "/"\n[[http_service.checks]]\npth = "/"',
        "http_service.checks[1].pth",
        "an unknown key",
        "path",
        "did you mean path?",
    ),
    "named check": (
        '[checks.a]\ntype = "tcp"\nport = 1\nprt = 2',
        "checks.a.prt",
        "an unknown key",
        "port",
        "port",
    ),
    # Keys of another table.
    "services.checks": (
        '[[services]]\ninternal_port = 1\n[[services.checks]]\npath = "/"',
        "services[0].checks",
        "an unknown key",
        "http_checks",
        "http_checks",
    ),
    "limit without its table": (
        SERVICE + "hard_limit = 25",
        "http_service.hard_limit",
        "an unknown key",
        "concurrency",
        "it belongs in [http_service.concurrency]",
    ),
    "top key below a table": (
        '[build]\ndockerfile = "Dockerfile"\nkill_timeout = 5',
        "build.kill_timeout",
        "an unknown key",
        "dockerfile",
        "it belongs at the top of the file, before the first table",
    ),
    "key above its table": (
        "force_https = true",
        "force_https",
        "an unknown key",
        "",
        "it belongs in [http_service]",
    ),
    # Values.
    "quoted port": (
        '[http_service]\ninternal_port = "8080"',
        "http_service.internal_port",
        '"8080" (a string)',
        "1 to 65535",
        "leave the quotes out",
    ),
    "port bounds": (
        "[http_service]\ninternal_port = 70000",
        "http_service.internal_port",
        "70000",
        "1 to 65535",
        "",
    ),
    "port word": (
        '[[services]]\ninternal_port = "http"',
        "services[0].internal_port",
        '"http"',
        "1 to 65535",
        "",
    ),
    "quoted boolean": (
        SERVICE + 'force_https = "true"',
        "http_service.force_https",
        '"true"',
        "true or false",
        "quotes",
    ),
    "autostop word": (
        SERVICE + 'auto_stop_machines = "true"',
        "http_service.auto_stop_machines",
        '"true"',
        '"off", "stop" or "suspend"',
        'write "stop"',
    ),
    "concurrency type": (
        SERVICE + '[http_service.concurrency]\ntype = "request"',
        "http_service.concurrency.type",
        '"request" (a string)',
        '"connections" or "requests"',
        "did you mean requests?",
    ),
    "negative limit": (
        SERVICE + "[http_service.concurrency]\nhard_limit = -1",
        "http_service.concurrency.hard_limit",
        "-1 (an integer)",
        "0 or more",
        "",
    ),
    "handler": (
        PORT + 'port = 9\nhandlers = ["https"]',
        "services[0].ports[0].handlers[0]",
        '"https"',
        '"tls"',
        "http",
    ),
    "metrics handler": (
        PORT + 'port = 9\nhandlers = ["metrics"]',
        "services[0].ports[0].handlers[0]",
        '"metrics"',
        '"tls"',
        "",
    ),
    "protocol": (
        '[[services]]\nprotocol = "http"\ninternal_port = 1',
        "services[0].protocol",
        '"http"',
        '"udp"',
        "",
    ),
    "duration": (
        SERVICE + '[[http_service.checks]]\ninterval = "10"',
        "http_service.checks[0].interval",
        '"10"',
        'such as "10s"',
        "needs its unit",
    ),
    "duration words": (
        '[[services]]\ninternal_port = 1\n[[services.tcp_checks]]\ntimeout = "2 seconds"',
        "services[0].tcp_checks[0].timeout",
        '"2 seconds"',
        'such as "10s"',
        "",
    ),
    "kill signal": ('kill_signal = "TERM"', "kill_signal", '"TERM"', "SIGTERM", "write SIGTERM"),
    "kill timeout": ('kill_timeout = "120"', "kill_timeout", '"120"', "duration", "unit"),
    "region": ('primary_region = "Frankfurt"', "primary_region", '"Frankfurt"', "three letters", ""),
    "strategy": (
        '[deploy]\nstrategy = "blue-green"',
        "deploy.strategy",
        '"blue-green"',
        '"bluegreen"',
        "bluegreen",
    ),
    "max unavailable": ("[deploy]\nmax_unavailable = 0", "deploy.max_unavailable", "0", "0.33", "bluegreen"),
    "release quotes": (
        '[deploy]\nrelease_command = "sh -c \'x"',
        "deploy.release_command",
        "sh -c",
        "quotes",
        "",
    ),
    "build arg number": ("[build.args]\nPORT = 3000", "build.args.PORT", "3000 (an integer)", "a string", ""),
    "env table": ("[env.production]\nSIZE = 1", "env.production", "a table", "a string", "values here"),
    "process table": ('[processes.env]\nA = "1"', "processes.env", "a table", "a string", ""),
    "process quotes": (
        '[processes]\nweb = "sh -c \'x"',
        "processes.web",
        "sh -c",
        "command line",
        "does not split",
    ),
    "size": (
        '[[vm]]\nsize = "shared-cpu-3x"',
        "vm[0].size",
        '"shared-cpu-3x"',
        "shared-cpu-4x",
        "did you mean",
    ),
    "dedicated size": (
        '[[vm]]\nsize = "dedicated-cpu-1x"',
        "vm[0].size",
        '"dedicated-cpu-1x"',
        "performance-1x",
        "",
    ),
    "memory": ('[[vm]]\nmemory = "lots"', "vm[0].memory", '"lots"', '"512mb"', ""),
    "no memory": ("[[vm]]\nmemory = 0", "vm[0].memory", "0", '"512mb"', ""),
    "cpus": ("[[vm]]\ncpus = 3", "vm[0].cpus", "3", "1, 2, 4", ""),
    "cpu kind": ('[[vm]]\ncpu_kind = "dedicated"', "vm[0].cpu_kind", '"dedicated"', '"performance"', ""),
    "restart no": ('[[restart]]\npolicy = "no"', "restart[0].policy", '"no"', '"never"', ""),
    "root mount": (
        '[mounts]\nsource = "d"\ndestination = "/"',
        "mounts.destination",
        '"/"',
        'other than "/"',
        "",
    ),
    "small volume": (
        '[mounts]\nsource = "d"\ndestination = "/d"\ninitial_size = "15mb"',
        "mounts.initial_size",
        '"15mb"',
        "at least 1gb",
        "",
    ),
    "retention": (
        '[mounts]\nsource = "d"\ndestination = "/d"\nsnapshot_retention = 90',
        "mounts.snapshot_retention",
        "90",
        "from 1 to 60",
        "",
    ),
    "compression": ('[build]\ncompression = "brotli"', "build.compression", '"brotli"', '"zstd"', ""),
    "header value": (
        SERVICE + "[http_service.http_options.response.headers]\nServer = true",
        "http_service.http_options.response.headers.Server",
        "true",
        "false",
        "",
    ),
    # Shapes.
    "restart table": (
        '[restart]\npolicy = "always"',
        "restart",
        "a table",
        "array",
        "[[restart]] with double brackets",
    ),
    "statics table": (
        '[statics]\nguest_path = "/a"\nurl_prefix = "/"',
        "statics",
        "a table",
        "array",
        "[[statics]]",
    ),
    "checks table": (
        SERVICE + '[http_service.checks]\npath = "/"',
        "http_service.checks",
        "a table",
        "an array of tables",
        "[[http_service.checks]] with double brackets",
    ),
    "http_service array": (
        "[[http_service]]\ninternal_port = 1",
        "http_service",
        "an array",
        "table",
        "single brackets",
    ),
    "concurrency array": (
        "[[services]]\ninternal_port = 1\n[[services.concurrency]]\nsoft_limit = 1",
        "services[0].concurrency",
        "an array",
        "a table",
        "single brackets",
    ),
    "deploy string": ('deploy = "rolling"', "deploy", '"rolling"', "a table", ""),
    "processes string": (SERVICE + 'processes = "app"', "http_service.processes", '"app"', "an array", ""),
    "old concurrency": (
        '[[services]]\ninternal_port = 1\nconcurrency = "20"',
        "services[0].concurrency",
        '"20"',
        "soft_limit",
        "",
    ),
    # What is missing.
    "mount source": ('[mounts]\ndestination = "/data"', "mounts.source", "nothing", "needs source", ""),
    "metrics port": ('[metrics]\npath = "/metrics"', "metrics.port", "nothing", "needs port", ""),
    "restart policy": ("[[restart]]\nretries = 3", "restart[0].policy", "nothing", "needs policy", ""),
    "check type": ("[checks.a]\nport = 1", "checks.a.type", "nothing", "needs type", ""),
    "machine check": (
        '[[machine_checks]]\nimage = "x"',
        "machine_checks[0].command",
        "nothing",
        "needs command",
        "",
    ),
    "check port": ('[checks.a]\ntype = "tcp"', "checks.a.port", "nothing", "the port", "no [http_service]"),
    "port of a port": (
        PORT + 'handlers = ["http"]',
        "services[0].ports[0].port",
        "nothing",
        "start_port",
        "",
    ),
    "half a range": (PORT + "start_port = 1", "services[0].ports[0].end_port", "nothing", "together", ""),
    "a port and a range": (
        PORT + "port = 1\nstart_port = 1\nend_port = 2",
        "services[0].ports[0].port",
        "both",
        "or",
        "",
    ),
    "a range backwards": (
        PORT + "start_port = 9\nend_port = 2",
        "services[0].ports[0].end_port",
        "2",
        "9 or more",
        "",
    ),
    "file source": ('[[files]]\nguest_path = "/a"', "files[0].local_path", "nothing", "one of", ""),
    "file sources": (
        '[[files]]\nguest_path = "/a"\nlocal_path = "a"\nraw_value = "b"',
        "files[0].raw_value",
        "local_path and raw_value",
        "one of",
        "",
    ),
    # Together.
    "groupless service": (
        SERVICE + '[processes]\nweb = "a"\nworker = "b"',
        "http_service.processes",
        "nothing",
        "the groups that serve it",
        'processes = ["web", "worker"]',
    ),
    "unknown group": (
        SERVICE + 'processes = ["wbe"]\n[processes]\nweb = "a"',
        "http_service.processes",
        '"wbe"',
        "of the groups web",
        "did you mean web?",
    ),
    "group without processes": (
        '[[vm]]\nprocesses = ["worker"]',
        "vm[0].processes",
        '"worker"',
        "app",
        "[processes]",
    ),
    "two volumes": (
        '[[mounts]]\nsource = "a"\ndestination = "/a"\n[[mounts]]\nsource = "b"\ndestination = "/b"',
        "mounts[1].source",
        "a second volume",
        "one volume",
        "",
    ),
    "half an extension": (
        '[mounts]\nsource = "a"\ndestination = "/a"\nauto_extend_size_threshold = 80',
        "mounts.auto_extend_size_increment",
        "nothing",
        "together",
        "",
    ),
    "canary with a volume": (
        '[deploy]\nstrategy = "canary"\n[mounts]\nsource = "a"\ndestination = "/a"',
        "deploy.strategy",
        '"canary" with [[mounts]]',
        '"rolling"',
        "volume",
    ),
    "bluegreen unchecked": (
        SERVICE + '[deploy]\nstrategy = "bluegreen"',
        "deploy.strategy",
        "without a health check",
        "at least one check",
        "[[http_service.checks]]",
    ),
    "short check": (
        '[checks.a]\ntype = "tcp"\nport = 1\ninterval = "1s"',
        "checks.a.interval",
        "1s",
        '"2s" or more',
        "",
    ),
    "long check": (
        '[checks.a]\ntype = "tcp"\nport = 1\ntimeout = "2m"',
        "checks.a.timeout",
        "2m0s",
        '"60s" or less',
        "",
    ),
    "many statics": (
        "".join(f'[[statics]]\nguest_path = "/a"\nurl_prefix = "/{n}"\n' for n in range(11)),
        "statics",
        "11 of them",
        "at most 10",
        "",
    ),
}


def problems_of(text: str) -> tuple[ConfigProblem, ...]:
    with pytest.raises(ConfigErrors) as refused:
        parse(text)
    return refused.value.each


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_for_the_right_reason(case: str) -> None:
    text, key, found, expected, hint = REFUSED[case]

    problems = problems_of('app = "x"\n' + text)

    assert [problem.key for problem in problems] == [key]
    problem = problems[0]
    assert found in problem.found
    assert expected in problem.expected
    assert hint in problem.hint
    assert problem.file == "fly.toml"
    assert problem.line is not None
    assert problem.line > 1


@pytest.mark.parametrize("name", ["", "<APP-NAME>", "Big", "under_score", "a b"])
def test_an_app_name_that_fly_would_refuse(name: str) -> None:
    assert [(p.key, p.line) for p in problems_of(f"\napp = '{name}'")] == [("app", 2)]


def test_an_app_needs_a_name_that_may_be_given() -> None:
    assert [p.key for p in problems_of("")] == ["app"]
    assert [p.key for p in problems_of('ap = "x"')] == ["ap"]
    assert parse("", app="given").app == "given"
    assert parse('app = "own"', app="given").app == "given"


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('app = "x"\n[http_service\n', 2, 14),
        ("app = x", 1, 7),
        ('app = "x"\napp = "y"', 2, None),
        ('app = "x"\n[env]\nA = "', 3, None),
        ('app = "x"\r\n[env]\r\nA = 1 2\r\n', 3, 7),
    ],
)
def test_broken_toml_is_placed(text: str, line: int, column: int | None) -> None:
    (problem,) = problems_of(text)

    assert (problem.line, problem.key, problem.expected) == (line, "", "TOML")
    assert column is None or problem.column == column


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000])
def test_toml_that_exhausts_the_parser_is_refused(text: str) -> None:
    assert [problem.key for problem in problems_of('app = "x"\n' + text)] in (["a"], [""])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as absent:
        load(tmp_path / "fly.toml")
    assert absent.value.each[0].found == "No such file or directory"

    (tmp_path / "latin.toml").write_bytes("app = 'ä'".encode("latin-1"))
    with pytest.raises(ConfigErrors) as latin:
        load(tmp_path / "latin.toml")
    assert "UTF-8" in latin.value.hint

    (tmp_path / "marked.toml").write_bytes(b'\xef\xbb\xbfapp = "x"\r\n')
    assert load(tmp_path / "marked.toml").app == "x"


def test_all_problems_of_a_file_are_told_at_once() -> None:
    text = """app = "x"
kill_signl = "SIGTERM"

[http_service]
  internal_port = "8080"
  [http_service.concurrency]
    type = "request"

[[services]]
  internal_port = 9000
  processes = ["web"]
  [[services.ports]]
    port = 80
    handlers = ["http", "https"]

[[vm]]
  memory = "lots"
"""
    with pytest.raises(ConfigErrors) as refused:
        parse(text, file="apps/fly.toml")

    assert render(refused.value) == snapshot("""\
apps/fly.toml:2: kill_signl: found an unknown key, expected one of app, build, checks, console_command, container, deploy, env, experimental, files, host_dedication_id, http_service, kill_signal, kill_timeout, machine_checks, machine_config, metrics, mounts, primary_region, processes, restart, services, statics, swap_size_mb, vm
  hint: did you mean kill_signal?
apps/fly.toml:5: http_service.internal_port: found "8080" (a string), expected a port, 1 to 65535
  hint: flyctl does not read a string here: leave the quotes out
apps/fly.toml:7: http_service.concurrency.type: found "request" (a string), expected "connections" or "requests"
  hint: did you mean requests?
apps/fly.toml:11: services[0].processes: found "web", expected of the groups app
  hint: add it to [processes]
apps/fly.toml:14: services[0].ports[0].handlers[1]: found "https" (a string), expected "http" or "tls" or "pg_tls" or "proxy_proto" or "edge_http"
  hint: did you mean http?
apps/fly.toml:17: vm[0].memory: found "lots" (a string), expected a size such as "512mb", "1gb" or 512 (MiB)
6 problems\
""")  # noqa: E501 - the operator's text as it is


def test_what_follows_from_a_misspelt_key_is_not_told_as_well() -> None:
    text = (
        'app = "x"\n[[mounts]]\nsorce = "a"\ndestination = "/a"\n'
        '[proceses]\nweb = "a"\n[http_service]\nprocesses = ["web"]'
    )

    assert [problem.key for problem in problems_of(text)] == ["mounts[0].sorce", "proceses"]
