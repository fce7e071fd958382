"""What `doctor` checks, each by itself. A check returns a Found, or raises CannotSay."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from myhealth_cli.deploy import flyctl, load, state, values
from myhealth_cli.deploy import world as world_module
from myhealth_cli.deploy.environments import ENVIRONMENTS, deployed
from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError
from myhealth_cli.deploy.facts import FACTS, STALE_DAYS, Fact
from myhealth_cli.deploy.findings import Found, by_hand, failed, ok, unknown
from myhealth_cli.deploy.probe import CANARY
from myhealth_cli.deploy.world import CannotSay, NotThere, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from myhealth_cli.deploy.environments import Deployed

SUPABASE_REGION: Final = "eu-central-1"
_WORKFLOW: Final = ".github/workflows/deploy-agents.yml"
_CERTIFICATE_DAYS: Final = 7.0
_POOLER: Final = re.compile(r"^aws-\d+-(?P<region>[a-z]+-[a-z]+-\d)\.pooler\.supabase\.com$")


# --- this machine ---


async def python(_world: World) -> Found:
    """Python is recent enough, as we are running."""
    return ok(World.python())


async def git(world: World) -> Found:
    """Git is there."""
    try:
        _, words = await world.run("git", "--version")
    except CannotSay as error:
        return failed(str(error), "install git: a release is named after its commit")
    return ok(words)


async def flyctl_there(world: World) -> Found:
    """Flyctl is there and says which version it is."""
    try:
        found = flyctl.find(folder=world.root)
    except NothingChangedError as error:
        return failed(str(error), error.hint)
    _, words = await world.run(str(found), "version")
    return ok(" ".join(words.split()[:2]) or str(found))


async def checkout(world: World) -> Found:
    """We are in a checkout."""
    if world.root is None:
        return failed("this is not a checkout of the repository", "cd to it; deploys begin there")
    return ok()


# --- Fly ---


async def login(world: World) -> Found:
    """There is an account, and we are logged in."""
    world.online()
    found = world.flyctl()
    try:
        await world.fly()
    except NotThere as error:
        return failed(str(error), error.hint)
    return ok(f"{found.binary.name} auth whoami")


async def app_there(environment: Deployed, world: World) -> Found:
    """See that the app exists."""
    await world.fly()
    try:
        await world.app(environment)
    except NotThere as error:
        return failed(str(error), error.hint)
    return ok(environment.app)


async def secrets(environment: Deployed, world: World) -> Found:
    """Every secret is there by name."""
    app = await world.app(environment)
    there = {each.name for each in app.secrets}
    if missing := [name for name in environment.secrets if name not in there]:
        return failed(f"missing: {', '.join(missing)}", f"myhealth setup {environment.name}")
    without = [f"without {name}" for name in environment.optional if name not in there]
    if app.machines and any(each.status.lower() in state.WAITING for each in app.secrets):
        without.append("some in force only with the next deploy")
    return ok(", ".join((*environment.secrets, *without)))


async def running(environment: Deployed, world: World) -> Found:
    """Every machine has one image, which has passed the gates."""
    app = await world.app(environment)
    verb = _deploy(environment)
    if not app.machines:
        return failed("nothing is deployed", verb)
    if (image := app.running) is None:
        return failed("its machines have different images", verb)
    if not any(each.same(image) for each in app.good[:1]):
        return failed(f"{image} has not passed the gates", verb)
    return ok(f"{image}, {_counted(len(app.machines))}")


def _deploy(environment: Deployed) -> str:
    return "myhealth deploy staging" if environment.name == "staging" else "myhealth promote"


def _counted(machines: int) -> str:
    return f"{machines} machine{'' if machines == 1 else 's'}"


async def region(environment: Deployed, world: World) -> Found:
    """Every machine is in Frankfurt."""
    app = await world.app(environment)
    if not app.machines:
        return unknown("it has no machines", _deploy(environment))
    elsewhere = sorted({each.region for each in app.machines} - {environment.region})
    if elsewhere:
        return failed(f"machines in {', '.join(elsewhere)}", "`fly scale count 0 --region THERE`")
    return ok(f"{_counted(len(app.machines))} in {environment.region}")


async def toml_read(environment: Deployed, world: World) -> Found:
    """fly.toml holds what we think it does: read strictly by the local Fly."""
    file = world.checkout() / environment.config
    code, words = await world.run(sys.executable, "-m", "fly_emulator", "check", str(file))
    return ok() if code == 0 else failed(words[-300:], f"correct {environment.config}")


async def toml_valid(environment: Deployed, world: World) -> Found:
    """fly.toml is valid for flyctl itself, unknown keys refused."""
    world.checkout()
    fly = await world.fly()
    try:
        async with asyncio.timeout(world_module.LOOK_S):
            await fly.run("config", "validate", "--strict", "--config", environment.config)
    except FlyctlError as error:
        return failed(str(error), f"correct {environment.config}")
    except TimeoutError:
        return unknown("flyctl did not end in time", "Is the network there?")
    return ok()


async def signed(environment: Deployed, world: World) -> Found:
    """See that named persons have signed what the server says to people and asks of them."""
    try:
        drafts = await asyncio.to_thread(values.drafts, environment, world.checkout())
    except NothingChangedError as error:
        raise CannotSay(str(error), error.hint) from error
    if drafts:
        hint = "docs/design/safety.md and consent.md say who reads and signs them"
        return failed(f"{len(drafts)} files are drafts", hint)
    return ok()


# --- addresses ---


async def dns(environment: Deployed, world: World) -> Found:
    """See that the name resolves."""
    return ok(", ".join(await world.addresses(environment.url)))


async def tls(environment: Deployed, world: World) -> Found:
    """See that the certificate is valid and stays so for a while."""
    await world.addresses(environment.url)
    days = await world.certificate_days(environment.url)
    if days < _CERTIFICATE_DAYS:
        return failed(f"the certificate ends in {days:.0f} days", f"`fly certs list --app {environment.app}`")
    return ok(f"good for {days:.0f} days")


async def ready(environment: Deployed, world: World) -> Found:
    """See that a request is answered: it wakes, its database is there, the migrations are the release's."""
    await world.addresses(environment.url)
    status, body = await world.get(f"{environment.url}/readyz")
    if status == 200:
        return ok("database, migrations and deployment marker are right")
    return failed(f"{status} {body}", f"myhealth logs {environment.name}")


async def version(environment: Deployed, world: World) -> Found:
    """See which release the server says it is, and that it is this environment's."""
    await world.addresses(environment.url)
    status, body = await world.get(f"{environment.url}/version")
    try:
        said = msgspec.json.decode(body, type=dict[str, str])
    except msgspec.DecodeError:
        return failed(f"{status}, not the backend's answer", f"myhealth status {environment.name}")
    if said.get("environment") != environment.name:
        return failed(f"it says it is {said.get('environment')}", f"myhealth status {environment.name}")
    return ok(f"release {said.get('release')}")


async def https(world: World) -> Found:
    """Both addresses answer over TLS."""
    found = [await tls(deployed(name), world) for name in ("staging", "production")]
    return next((each for each in found if each.state != "ok"), ok("staging and production"))


# --- Supabase ---


async def database(world: World) -> Found:
    """DATABASE_URL, where it is set here, names a database that can be reached, by a way that works."""
    parts = _database(world)
    if parts.port == 6543:
        return failed(
            "port 6543 is the transaction pooler: no LISTEN, no prepared statements",
            "use the session pooler or the direct connection, port 5432",
        )
    if parts.hostname is None:
        return failed("it names no host", "postgresql://USER:PASSWORD@HOST:5432/postgres")
    await world.reach(parts.hostname, parts.port or 5432)
    return ok(f"{parts.hostname}:{parts.port or 5432}")


async def supabase_region(world: World) -> Found:
    """See that the project is in Frankfurt, as the pooler's host name says."""
    host = _database(world).hostname or ""
    found = _POOLER.match(host)
    if found is None:
        return unknown("only a pooler's host name tells the region", "see the project's settings in Supabase")
    if found["region"] != SUPABASE_REGION:
        return failed(found["region"], f"a project cannot be moved: make one in {SUPABASE_REGION}")
    return ok(found["region"])


async def canary(world: World) -> Found:
    """See that the canary user's variables are set here."""
    missing: list[str] = []
    for name in CANARY:
        try:
            world.variable(name)
        except CannotSay:
            missing.append(name)
    if missing:
        return failed(f"not set here: {', '.join(missing)}", "docs/runbooks/deploy.md: the canary user")
    return ok(", ".join(CANARY))


def _database(world: World):  # noqa: ANN202 - urllib's own type
    try:
        parts = urlsplit(world.variable("DATABASE_URL"))
        _ = parts.port
    except ValueError as error:
        raise CannotSay("DATABASE_URL is no address", "percent-encode the password in it") from error
    return parts


# --- GitHub ---


async def workflow(world: World) -> Found:
    """See that the workflow that deploys is in the checkout."""
    if (world.checkout() / _WORKFLOW).is_file():
        return ok(_WORKFLOW)
    return failed(f"{_WORKFLOW} is missing", "it comes with the repository")


async def github_secrets(world: World) -> Found:
    """GitHub has the secrets that the workflow needs, by name, in each environment, if `gh` can tell."""
    world.online()
    lacking: list[str] = []
    for environment in (each for each in ENVIRONMENTS if each.app):
        there = await _in_github(world) | await _in_github(world, "--env", environment.name)
        missing = [name for name in environment.in_place("GitHub secrets") if name not in there]
        lacking += [f"{environment.name} lacks {', '.join(missing)}"] if missing else []
    if lacking:
        return failed("; ".join(lacking), "docs/design/ci.md: By hand, once")
    return ok("staging and production")


async def _in_github(world: World, *more: str) -> set[str]:
    code, words = await world.run("gh", "secret", "list", "--json", "name", *more)
    by_hand = "see the repository's settings, or `gh auth login`"
    if code != 0:
        raise CannotSay(f"gh does not say: {words.splitlines()[0][:120] if words else code}", by_hand)
    try:
        return {each["name"] for each in msgspec.json.decode(words or "[]", type=list[dict[str, str]])}
    except (msgspec.MsgspecError, KeyError) as error:
        raise CannotSay("gh answers something else", by_hand) from error


# --- the epic's lists ---


async def both_secrets(world: World) -> Found:
    """Both apps have every secret."""
    found = [await secrets(deployed(name), world) for name in ("staging", "production")]
    return next((each for each in found if each.state != "ok"), ok("staging and production"))


async def monitoring(world: World) -> Found:
    """Fly scrapes metrics; alerts are a person's."""
    for name in ("staging", "production"):
        text = (world.checkout() / deployed(name).config).read_text("utf-8")
        if "[metrics]" not in text:
            return failed(f"{deployed(name).config} has no [metrics]", "add port and path")
    return Found("by hand", "fly.toml has [metrics]; `myhealth logs` works", "look at fly-metrics.net")


async def loaded(world: World) -> Found:
    """See that a load was put on a deployed server, and it answered."""
    result = load.last(world.checkout())
    if result is None:
        return failed("no load is recorded here", f"myhealth load {deployed('staging').url}")
    host = urlsplit(result.url).hostname
    if host not in {urlsplit(deployed(name).url).hostname for name in ("staging", "production")}:
        return failed(f"only {host} was loaded ({result.at})", f"myhealth load {deployed('staging').url}")
    words = f"{result.answered} of {result.turns} answered, {result.clients} clients, {result.at}"
    return failed(words, "myhealth logs staging") if result.failed else ok(words)


async def rollback_told(world: World) -> Found:
    """See that the way back is written down."""
    page = "docs/runbooks/rollback.md"
    if (world.checkout() / page).is_file():
        return ok(page)
    return failed(f"{page} is missing", "it comes with the repository")


async def _only_a_person(hint: str, _world: World) -> Found:
    return by_hand(hint)


def person(hint: str) -> Callable[[World], Awaitable[Found]]:
    """Return a check of what only a person can see."""
    return partial(_only_a_person, hint)


async def _fact(fact: Fact, _world: World) -> Found:
    age = (datetime.now(UTC).date() - fact.read).days
    words = f"{fact.source}, read {fact.read}"
    return ok(words) if age <= STALE_DAYS else unknown(f"{words}, {age} days ago", "read it again")


def facts() -> list[tuple[str, str, Callable[[World], Awaitable[Found]]]]:
    """Return a check for each fact: id, title, check."""
    return [(f"price.{number}", fact.says, partial(_fact, fact)) for number, fact in enumerate(FACTS, 1)]
