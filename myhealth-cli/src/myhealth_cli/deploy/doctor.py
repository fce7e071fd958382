"""`myhealth doctor`: the epic's Definition of Done and checklists, each item looked at or left to a person.

An item is `ok`, `failed`, `by hand` (only a person can say) or `unknown` (and why it could not be looked at).
It works on a machine with nothing, and shows no secret's value: what it prints of Fly are names and digests.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from myhealth_cli.deploy import checks, report
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.deploy.findings import STATES, Finding, Found, unknown
from myhealth_cli.deploy.ground import checkout
from myhealth_cli.deploy.world import CannotSay, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from myhealth_cli.deploy.environments import Deployed

    Look: TypeAlias = Callable[[World], Awaitable[Found]]

DONE: Final = "Epic: Definition of Done"
BEFORE_STAGING: Final = "Epic: Vor Staging Deploy"
BEFORE_PRODUCTION: Final = "Epic: Vor Production Deploy"
EPIC: Final = (DONE, BEFORE_STAGING, BEFORE_PRODUCTION)
_SIGNS: Final = {"ok": "ok     ", "failed": "FAILED ", "by hand": "by hand", "unknown": "unknown"}


class Item:
    """One line of the list: an id that stays, a title, and how to look."""

    def __init__(self, section: str, name: str, title: str, look: Look) -> None:
        self.section = section
        self.id = name
        self.title = title
        self.look = look


def items() -> list[Item]:
    """Return the whole list, in order."""
    here, prices = "This machine", "Prices and free tiers"
    supabase, github = "Supabase", "GitHub"
    found = [
        Item(here, "python", "Python", checks.python),
        Item(here, "git", "git", checks.git),
        Item(here, "flyctl", "flyctl", checks.flyctl_there),
        Item(here, "checkout", "Checkout of the repository", checks.checkout),
        Item(here, "login", "Logged in to Fly", checks.login),
    ]
    for name in ("staging", "production"):
        found += _of(deployed(name))
    found += [
        Item(supabase, "database", "DATABASE_URL can be reached from here", checks.database),
        Item(supabase, "region", "The project is in eu-central-1", checks.supabase_region),
        Item(supabase, "canary", "The canary user is known here", checks.canary),
        Item(github, "workflow", "The workflow that deploys", checks.workflow),
        Item(github, "github.secrets", "Secrets in GitHub", checks.github_secrets),
    ]
    found += [Item(prices, name, title, look) for name, title, look in checks.facts()]
    return found + _epic()


def _of(environment: Deployed) -> list[Item]:
    looks: list[tuple[str, str, Callable[[Deployed, World], Awaitable[Found]]]] = [
        ("app", "The app exists", checks.app_there),
        ("secrets", "Its secrets are set", checks.secrets),
        ("toml", f"{environment.config} is read strictly", checks.toml_read),
        ("toml.flyctl", f"{environment.config} is valid for flyctl", checks.toml_valid),
        ("running", "A proven image on every machine", checks.running),
        ("region", f"Machines in {environment.region}", checks.region),
        ("dns", "The address resolves", checks.dns),
        ("tls", "TLS", checks.tls),
        ("ready", "/readyz: database and migrations", checks.ready),
        ("version", "/version", checks.version),
    ]
    if environment.name == "production":
        looks.append(("signed", "Consent and safety texts are signed", checks.signed))
    section = f"{environment.name.capitalize()} ({environment.app})"
    return [
        Item(section, f"{environment.name}.{name}", title, partial(look, environment))
        for name, title, look in looks
    ]


def _epic() -> list[Item]:
    """Return the epic's own lists, in its words."""
    staging, production = deployed("staging"), deployed("production")
    later, person = checks.person("with the iPhone client, which comes later"), checks.person
    return [
        Item(DONE, "done.account", "Fly.io Account erstellt", checks.login),
        Item(DONE, "done.staging", "Staging Environment deployed", partial(checks.running, staging)),
        Item(DONE, "done.production", "Production Environment deployed", partial(checks.running, production)),
        Item(DONE, "done.secrets", "API Keys in Fly Secrets", checks.both_secrets),
        Item(DONE, "done.https", "HTTPS funktioniert", checks.https),
        Item(DONE, "done.ios", "iOS App Environment Config", later),
        Item(DONE, "done.schemes", "Xcode Schemes konfiguriert", later),
        Item(DONE, "done.actions", "GitHub Actions für Auto-Deploy", checks.workflow),
        Item(DONE, "done.testflight", "TestFlight Build funktioniert gegen Staging", later),
        Item(DONE, "done.monitoring", "Monitoring/Logs eingerichtet", checks.monitoring),
        Item(BEFORE_STAGING, "staging.units", "Alle Unit Tests grün", person("run `make test`")),
        Item(BEFORE_STAGING, "staging.simulator", "Lokales Testing mit Simulator funktioniert", later),
        Item(
            BEFORE_STAGING,
            "staging.curl",
            "API Endpoints getestet (Postman/curl)",
            person("`make test` runs docs/design/api.md"),
        ),
        Item(BEFORE_STAGING, "staging.errors", "Error Handling getestet", person("run `make test`")),
        Item(
            BEFORE_PRODUCTION,
            "production.staging",
            "Staging Tests bestanden",
            partial(checks.running, staging),
        ),
        Item(BEFORE_PRODUCTION, "production.beta", "TestFlight Beta von min. 1 Person getestet", later),
        Item(BEFORE_PRODUCTION, "production.load", "Performance unter Last getestet", checks.loaded),
        Item(BEFORE_PRODUCTION, "production.rollback", "Rollback-Plan dokumentiert", checks.rollback_told),
        Item(BEFORE_PRODUCTION, "production.monitoring", "Monitoring eingerichtet", checks.monitoring),
    ]


async def examine(world: World, wanted: Sequence[Item]) -> list[Finding]:
    """Look at every item, at the same time; none ends with a stack trace."""

    async def one(item: Item) -> Finding:
        try:
            found = await item.look(world)
        except CannotSay as error:
            found = unknown(str(error), error.hint)
        except (OSError, ValueError) as error:
            found = unknown(f"the look failed ({type(error).__name__})", "see that what it names can be read")
        return Finding(
            id=item.id,
            section=item.section,
            title=item.title,
            state=found.state,
            detail=found.detail,
            hint=found.hint,
        )

    return list(await asyncio.gather(*(one(item) for item in wanted)))


def run(*, as_json: bool, offline: bool) -> int:
    """Print the list; return 1 if something failed."""
    try:
        root = checkout()
    except NothingChangedError:
        root = None
    findings = asyncio.run(examine(World(root, offline=offline), items()))
    counts = Counter(each.state for each in findings)
    if as_json:
        report.show_json({"counts": {state: counts[state] for state in STATES}, "findings": findings})
    else:
        sys.stdout.write(words(findings))
    return 1 if counts["failed"] else 0


def words(findings: Sequence[Finding]) -> str:
    """Write the list for the terminal."""
    lines: list[str] = []
    section = ""
    for each in findings:
        if each.section != section:
            section = each.section
            lines += ["", section]
        rest = "; ".join(part for part in (each.detail, each.hint and f"-> {each.hint}") if part)
        lines.append(f"  {_SIGNS[each.state]}  {each.title}{': ' + rest if rest else ''}")
    counts = Counter(each.state for each in findings)
    lines += ["", ", ".join(f"{counts[state]} {state}" for state in STATES)]
    return "\n".join(lines).lstrip("\n") + "\n"
