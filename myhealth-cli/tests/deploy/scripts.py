"""What is typed of each runbook, in an order that makes sense, and what must be seen.

test_flyctl_runbooks.py types it; test_runbooks.py sees that nothing of a page is missing. What two pages have
is typed once, and written as the page has it: `Night.filled` puts in what a person would (ID, IMAGE, N, ...)
and what the local stage needs (addresses, an image instead of a build, no waiting for DNS).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from .night import Night

if TYPE_CHECKING:
    from collections.abc import Mapping

Act = Callable[[Night], None]


class Typed(NamedTuple):
    """One command. `before` arranges what has happened to the world; `says` must be in what it prints.

    `codes`: the exit codes it may end with. `real`: only flyctl itself knows it, not a stand-in.
    """

    command: str
    says: tuple[str, ...] = ()
    before: Act | None = None
    codes: tuple[int, ...] = (0,)
    stdin: str = ""
    real: bool = False


def _a_second_release(night: Night) -> None:
    night.next = "two"


def _new_secrets(night: Night) -> None:
    night.write("staging", "secrets.env")
    night.image = night.machine("staging").image_ref.exact


def _release_two(night: Night) -> None:
    night.number = 2


def _newest(night: Night) -> None:
    night.to(None)


def _one_was_good(night: Night) -> None:
    night.is_("one")


def _the_right_one(night: Night) -> None:
    night.write("production")


def _a_laptops_shell(night: Night) -> None:
    night.shell["DATABASE_URL"] = night.secret("production", "DATABASE_URL")


def _erased_since(night: Night) -> None:
    night.write("production")
    night.erase_somebody()


STATUS: Final = "myhealth status production"
URL: Final = "https://myhealth-agents.fly.dev"
APP: Final = "--app myhealth-agents"

SCRIPTS: Final[Mapping[str, tuple[Typed, ...]]] = {
    "first-deployment": (
        Typed("myhealth doctor", ("Staging",), codes=(0, 1)),
        Typed("myhealth environments", ("staging: https://myhealth-agents-staging.fly.dev", "CANARY_EMAIL")),
        Typed("myhealth environments --json", ('"myhealth-agents"',)),
    ),
    "deploy": (
        Typed("set -a; . ~/myhealth/canary.staging.env; set +a", before=Night.begin),
        Typed("myhealth deploy staging --dry-run", ("nothing is done", "If a step fails"), _a_second_release),
        Typed("myhealth deploy staging", ("myhealth-agents-staging: done",)),
        Typed("myhealth status staging", (": serving", "would go to: one")),
        Typed("myhealth load https://myhealth-agents-staging.fly.dev --clients 1 --turns 1", ("answered",)),
        Typed("set -a; . ~/myhealth/canary.production.env; set +a"),
        Typed("myhealth promote --dry-run", ("nothing is done", "release two")),
        Typed("myhealth promote", ("myhealth-agents: done",)),
        Typed(
            "myhealth setup staging --from FILE --replace",
            ("set secrets, for the next deploy",),
            _new_secrets,
        ),
        Typed("myhealth deploy staging --image IMAGE", ("myhealth-agents-staging: done",)),
        Typed("myhealth load https://myhealth-agents-staging.fly.dev --clients 10 --turns 50", ("50",)),
    ),
    "rollback": (
        Typed(STATUS, ("would go to: one", "v2 complete", "v1 complete")),
        Typed("myhealth rollback", ("myhealth-agents: done", "release one")),
        # Release 2 was proven, was taken back, and is wanted all the same.
        Typed("myhealth rollback 7", ("myhealth-agents: done", "release two"), _release_two),
        Typed("myhealth rollback --environment staging", ("myhealth-agents-staging: done", "release one")),
        Typed(f"fly releases {APP} --image", ("v3", "registry.fly.io/"), _one_was_good),
        Typed(
            f"fly deploy {APP} --config agent-backend/fly.toml --image IMAGE --env RELEASE=NAME"
            " --skip-release-command",
            before=Night.sleep,
        ),
        Typed(f"fly machine list {APP}", ("stopped",)),
        Typed(f"fly machine start ID {APP}"),
        Typed(f"curl -m 30 -fsS {URL}/readyz", ("ready",)),
        Typed(f"curl -m 30 -fsS {URL}/version", ('"release":"one"',)),
        Typed("myhealth rollback N", ("myhealth-agents: done", "release one"), _newest),
    ),
    "incident": (
        Typed(STATUS, (": BROKEN", "has crashed", "exit code 1", "NOT proven"), Night.break_asleep),
        Typed("myhealth logs production --no-follow", ("no database",)),
        Typed(f"fly machine start ID {APP}"),
        Typed("myhealth logs production --no-follow --machine ID", ("no database",)),
        Typed(
            f"fly deploy {APP} --config agent-backend/fly.toml --image IMAGE --env RELEASE=NAME",
            ("release_command",),
            _one_was_good,
        ),
        Typed("myhealth setup production --from FILE --replace", ("set secrets",), _the_right_one),
        Typed("read -rs NEW", stdin="sk-acceptance\n"),
        Typed("(umask 077; printf 'ANTHROPIC_API_KEY=%s\\n' \"$NEW\" > secrets.env)"),
        Typed(
            "myhealth setup production --from secrets.env --replace; rm secrets.env; unset NEW",
            ("ANTHROPIC_API_KEY",),
        ),
        Typed(STATUS, ("secrets wait for a deploy", "ANTHROPIC_API_KEY (Staged)")),
        Typed("myhealth rollback N", ("myhealth-agents: done",), _newest),
        Typed("myhealth promote", ("myhealth-agents: done",)),
    ),
    "on-call": (
        Typed(f"curl -m 30 {URL}/livez", ("alive",)),
        Typed(f"curl -m 30 {URL}/readyz", ("ready",)),
        Typed(f"curl -m 30 {URL}/version", ('"release"',)),
        Typed(
            f'fly machine exec ID "agent-backend check-config" {APP}',
            ("DATABASE_URL", "Secret(***)"),
            real=True,
        ),
    ),
    "privacy": (
        Typed(
            "(umask 077; agent-backend tombstones dump > tombstones-$(date +%F).json)",
            before=_a_laptops_shell,
        ),
        Typed("(umask 077; myhealth logs production --no-follow --json > evidence.json)"),
    ),
    "restore": (
        Typed(f"fly machine cordon ID {APP}", real=True),
        Typed(f"fly machine stop ID {APP}"),
        Typed("(umask 077; touch production.env)"),
        Typed("set -a; . ./production.env; set +a", before=_erased_since),
        Typed("(umask 077; .venv/bin/agent-backend tombstones dump > tombstones.json)"),
        Typed(
            "ENVIRONMENT=production APP_NAME=myhealth-agents RELEASE=NAME .venv/bin/agent-backend migrate",
            ("up to date",),
            Night.runs,
        ),
        Typed(
            ".venv/bin/agent-backend tombstones load < tombstones.json",
            ("added 1 tombstones, 1 users are being erased again",),
            Night.restore,
        ),
        Typed("rm production.env"),
        Typed(f"fly machine uncordon ID {APP}", real=True),
        Typed(f"fly machine start ID {APP}"),
        Typed(f"curl -m 30 -fsS {URL}/readyz", ("ready",)),
        Typed(STATUS, (": serving",), Night.erased_again),
    ),
}
