from __future__ import annotations

import msgspec
import pytest
from inline_snapshot import snapshot

from myhealth_cli.deploy import plan
from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.deploy.plan import Plan
from myhealth_cli.deploy.report import words
from myhealth_cli.deploy.state import FLED, App, Image, ImageRef, Machine, Release, Secret, noted

from .apps import ALL, PRODUCTION, STAGING, app, image, machine

URL = "https://example.test"
A, B, C = image("a"), image("b"), image("c")


def short(wanted: Plan) -> list[str]:
    """Write a plan as its words, with short digests."""
    lines = [words(step) for step in wanted.steps]
    lines += [f"back: {words(step)}" for step in wanted.recovery] + [f"note: {each}" for each in wanted.notes]
    for letter in "abc":
        lines = [line.replace(image(letter).ref, letter) for line in lines]
    return lines


def deploy(found: App, wanted: Image = B, build: str | None = None) -> Plan:
    return plan.deploy(STAGING, found, wanted, build=build, bake=60, url=URL)


def test_the_first_deploy_has_no_way_back_and_says_so() -> None:
    assert short(deploy(app(), build="0123456789ab")) == snapshot(
        [
            "build the image once, as 0123456789ab",
            "deploy b (release release-b) to myhealth-agents-staging, after the release command",
            "wake every machine",
            "compare the images of all machines",
            "probe /readyz and /version of each machine at https://example.test",
            "ask a question as the canary user",
            "watch for 60 s, then ask again",
            "note b (release release-b) as proven",
            "note: nothing proven to go back to: if this fails, the app stays as it is then",
        ]
    )


def test_a_deploy_goes_back_to_what_was_proven() -> None:
    assert short(deploy(app(machine(1, A, good=(A,))))) == snapshot(
        [
            "deploy b (release release-b) to myhealth-agents-staging, after the release command",
            "wake every machine",
            "compare the images of all machines",
            "probe /readyz and /version of each machine at https://example.test",
            "ask a question as the canary user",
            "watch for 60 s, then ask again",
            "note b (release release-b) as proven",
            "back: deploy a (release release-a) to myhealth-agents-staging, without the release command",
            "back: wake every machine",
            "back: compare the images of all machines",
            "back: probe /readyz and /version of each machine at https://example.test",
            "back: ask a question as the canary user",
        ]
    )


def test_a_deploy_never_goes_back_to_what_a_killed_deploy_left() -> None:
    back = deploy(app(machine(1, C, good=(A,)), machine(2, A, good=(A,)))).recovery[0]
    assert isinstance(back, plan.DeployImage)
    assert back.image == A


def test_a_deploy_that_was_killed_after_its_change_only_passes_the_gates() -> None:
    wanted = deploy(app(machine(1, B, good=(A,)), machine(2, B, good=(A,))))
    assert [type(step) for step in wanted.steps] == [
        plan.WakeMachines,
        plan.CompareImages,
        plan.ProbeMachines,
        plan.AskCanary,
        plan.Bake,
        plan.NoteGood,
    ]
    assert wanted.recovery


def test_a_deploy_that_was_killed_in_the_middle_deploys_again() -> None:
    wanted = deploy(app(machine(1, B, good=(A,)), machine(2, A, good=(A,))))
    assert isinstance(wanted.steps[0], plan.DeployImage)


def test_what_is_proven_and_fails_now_is_not_replaced_by_something_older() -> None:
    assert deploy(app(machine(1, B, good=(B, A)))).recovery == ()


def test_a_secret_that_waits_is_deployed_though_the_image_is_the_same() -> None:
    found = App(
        STAGING.app,
        machines=(machine(1, B, good=(B,)),),
        secrets=(*ALL[1:], Secret("DATABASE_URL", "Staged")),
    )
    assert isinstance(deploy(found).steps[0], plan.DeployImage)


def test_a_tag_and_its_digest_are_the_same_image() -> None:
    tagged = Image("registry.fly.io/myhealth-agents-staging:tag", B.release)
    assert not isinstance(deploy(app(machine(1, B)), tagged).steps[0], plan.DeployImage)


@pytest.mark.parametrize(
    ("ref", "same"),
    [
        ("registry.fly.io/app:tag", True),
        ("registry.fly.io/app:other", False),
        ("registry.fly.io/app", False),
        (f"registry.fly.io/app@sha256:{'a' * 64}", True),
        (f"registry.fly.io/app:tag@sha256:{'b' * 64}", False),
        ("localhost:5000/app:tag", False),
    ],
)
def test_references(ref: str, same: bool) -> None:  # noqa: FBT001 - a case's answer
    assert ImageRef("registry.fly.io", "app", "tag", f"sha256:{'a' * 64}").is_of(ref) is same


def test_promotion_is_by_digest_without_a_build() -> None:
    staging = app(machine(1, B, good=(B, A)))
    production = app(machine(1, A, good=(A,)), name=PRODUCTION.app)
    wanted = plan.promote(staging, PRODUCTION, production, bake=60, url=URL)
    first = wanted.steps[0]
    assert isinstance(first, plan.DeployImage)
    assert first.image == B
    assert "@sha256:" in first.image.ref


@pytest.mark.parametrize(
    ("staging", "says"),
    [
        (app(), "runs nothing"),
        (app(machine(1, A, good=(A,)), machine(2, B, good=(A,))), "different images"),
        (app(machine(1, B, good=(A,))), "has not passed its gates"),
    ],
)
def test_promotion_refuses_what_is_not_proven_on_staging(staging: App, says: str) -> None:
    with pytest.raises(NothingChangedError, match=says):
        plan.promote(staging, PRODUCTION, app(name=PRODUCTION.app), bake=60, url=URL)


def test_promotion_takes_what_was_built_and_nothing_that_has_its_name() -> None:
    found = app(machine(1, Image(B.ref, A.release), good=(Image(B.ref, A.release),)))
    there = app(name=PRODUCTION.app)
    with pytest.raises(NothingChangedError, match="not registry"):
        plan.promote(found, PRODUCTION, there, bake=60, url=URL, expected=A.ref)
    with pytest.raises(NothingChangedError, match=r"runs .*, not $"):
        plan.promote(found, PRODUCTION, there, bake=60, url=URL, expected="")
    assert plan.promote(found, PRODUCTION, there, bake=60, url=URL, expected=f"x@{B.ref.partition('@')[2]}")


def test_rollback_goes_to_what_was_proven_before() -> None:
    found = app(machine(1, B, good=(B, A)), name=PRODUCTION.app)
    assert short(plan.rollback(PRODUCTION, found, None, bake=30, url=URL)) == snapshot(
        [
            "deploy a (release release-a) to myhealth-agents, without the release command",
            "wake every machine",
            "compare the images of all machines",
            "probe /readyz and /version of each machine at https://example.test",
            "ask a question as the canary user",
            "watch for 30 s, then ask again",
            "note a (release release-a) as proven",
            "note: secrets, fly.toml and the database are not taken back",
        ]
    )


def test_rollback_from_something_unproven_goes_to_the_last_proven() -> None:
    found = app(machine(1, C, good=(B, A)), name=PRODUCTION.app)
    first = plan.rollback(PRODUCTION, found, None, bake=30, url=URL).steps[0]
    assert isinstance(first, plan.DeployImage)
    assert first.image == B


def test_a_second_rollback_goes_further_back_not_forth() -> None:
    after = noted(B, (C, B, A), forget_newer=True)
    assert after == (B, A)
    found = app(machine(1, B, good=after), name=PRODUCTION.app)
    first = plan.rollback(PRODUCTION, found, None, bake=30, url=URL).steps[0]
    assert isinstance(first, plan.DeployImage)
    assert first.image == A


def rolled_back(number: int, runs: Image, fled: Image, good: tuple[Image, ...]) -> Machine:
    """Return a machine that a rollback has deployed."""
    made = machine(number, runs, good=good)
    env = {**made.config.env, FLED: fled.ref}
    return msgspec.structs.replace(made, config=msgspec.structs.replace(made.config, env=env))


@pytest.mark.parametrize(
    "machines",
    [
        (rolled_back(1, B, C, (C, B, A)),),
        (rolled_back(1, B, C, (C, B, A)), machine(2, C, good=(C, B, A))),
        (machine(1, C, good=(C, B, A)), rolled_back(2, B, C, (C, B, A))),
    ],
    ids=["before its note", "between two machines", "the other one first"],
)
def test_a_rollback_that_was_killed_is_said_again_and_does_not_go_forth(
    machines: tuple[Machine, ...],
) -> None:
    found = app(*machines, name=PRODUCTION.app)
    first, *_, note = plan.rollback(PRODUCTION, found, None, bake=30, url=URL).steps
    assert isinstance(first, plan.DeployImage)
    assert isinstance(note, plan.NoteGood)
    assert (first.image, first.fled) == (B, C.ref)
    after = noted(B, found.good, forget_newer=note.forget_newer, fled=note.fled)
    assert after == (B, A)
    # Once it has ended, the next one goes further back.
    done = app(rolled_back(1, B, C, after), name=PRODUCTION.app)
    again = plan.rollback(PRODUCTION, done, None, bake=30, url=URL).steps[0]
    assert isinstance(again, plan.DeployImage)
    assert again.image == A


def test_a_rollback_to_what_was_never_proven_is_gone_back_from() -> None:
    found = app(rolled_back(1, C, B, (B, A)), name=PRODUCTION.app)
    first = plan.rollback(PRODUCTION, found, None, bake=30, url=URL).steps[0]
    assert isinstance(first, plan.DeployImage)
    assert first.image == B


def test_rollback_to_a_number() -> None:
    releases = (Release(7, "complete", B.ref), Release(6, "complete", "registry.fly.io/x:0123"))
    found = app(machine(1, B, good=(B,)), name=PRODUCTION.app, releases=releases)
    first = plan.rollback(PRODUCTION, found, 6, bake=30, url=URL).steps[0]
    assert isinstance(first, plan.DeployImage)
    assert first.image == Image("registry.fly.io/x:0123", "0123")
    with pytest.raises(NothingChangedError, match="no release 5"):
        plan.rollback(PRODUCTION, found, 5, bake=30, url=URL)


def test_rollback_to_nothing() -> None:
    with pytest.raises(NothingChangedError, match="no other image"):
        plan.rollback(PRODUCTION, app(machine(1, A, good=(A,))), None, bake=30, url=URL)


def test_setup_makes_what_is_missing_and_nothing_twice() -> None:
    fresh = plan.setup(STAGING, App(STAGING.app, exists=False), STAGING.secrets, replace=False, org="acme")
    assert short(fresh) == snapshot(
        [
            "create the app myhealth-agents-staging",
            f"set secrets, for the next deploy: {', '.join(STAGING.secrets)}",
        ]
    )
    assert plan.setup(STAGING, app(), STAGING.secrets, replace=False).steps == ()
    again = plan.setup(STAGING, app(), ["ANTHROPIC_API_KEY", "OTHER"], replace=True)
    assert again.steps == (plan.StageSecrets(STAGING.app, ("ANTHROPIC_API_KEY",)),)
    # An optional secret is set where there is a value, and missed by nobody.
    told = plan.setup(STAGING, app(), ["SENTRY_DSN"], replace=False)
    assert told.steps == (plan.StageSecrets(STAGING.app, ("SENTRY_DSN",)),)
    assert STAGING.optional == ("MIGRATE_DATABASE_URL", "SENTRY_DSN")


def test_setup_without_a_value_and_deploy_without_a_secret_change_nothing() -> None:
    with pytest.raises(NothingChangedError, match="no value for DATABASE_URL, SUPABASE_URL"):
        plan.setup(
            STAGING,
            App(STAGING.app, exists=False),
            ["ANTHROPIC_API_KEY", "SUPABASE_SERVICE_KEY"],
            replace=False,
        )
    with pytest.raises(NothingChangedError, match="has no DATABASE_URL"):
        deploy(App(STAGING.app, secrets=ALL[1:]))
    with pytest.raises(NothingChangedError, match="there is no app"):
        deploy(App(STAGING.app, exists=False))


def test_notes_are_few_and_name_an_image_once() -> None:
    assert noted(A, (B, A), forget_newer=False) == (A, B)
    many = tuple(image(letter) for letter in "bcdefgh")
    assert len(noted(A, many, forget_newer=False)) == 5


def test_an_image_with_a_proven_ones_name_is_not_proven_and_is_taken_back() -> None:
    again = Image(B.ref, A.release)
    with pytest.raises(NothingChangedError, match="has not passed its gates"):
        plan.promote(
            app(machine(1, again, good=(A,))), PRODUCTION, app(name=PRODUCTION.app), bake=60, url=URL
        )
    back = deploy(app(machine(1, A, good=(A,))), again).recovery[0]
    assert isinstance(back, plan.DeployImage)
    assert back.image == A


def test_a_rollback_to_an_image_that_was_never_noted_forgets_what_it_fled_from() -> None:
    releases = (Release(3, "complete", C.ref),)
    found = app(machine(1, B, good=(B, A)), name=PRODUCTION.app, releases=releases)
    note = plan.rollback(PRODUCTION, found, 3, bake=30, url=URL).steps[-1]
    assert isinstance(note, plan.NoteGood)
    assert noted(C, found.good, forget_newer=note.forget_newer, fled=note.fled) == (C, A)
