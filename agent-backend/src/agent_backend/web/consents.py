"""Consents: the texts, what the user has said to them, giving and withdrawing."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import Response

from agent_backend.consents import PURPOSES, Catalogue, Purpose, purpose_of
from agent_backend.db import consents
from agent_backend.errors import Conflict, FieldError, InvalidRequest, NotFound
from agent_backend.web.operations import Call, operation, reply

_MAX_CLIENT = 200
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")


class ConsentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A text to agree to. `sha256`: of the text's UTF-8 bytes, in hex."""

    purpose: Purpose
    version: str
    locale: str
    title: str
    text: str
    sha256: str


class ConsentDocuments(msgspec.Struct, frozen=True, kw_only=True):
    """The current texts, in every language there is."""

    consents: list[ConsentDocument]


class Consent(msgspec.Struct, frozen=True, kw_only=True):
    """What the user last said to a purpose.

    `given`: there is a consent that counts. Without one, `version` and the rest tell of one that was
    withdrawn or is to be renewed, if there is one. `is_current`: the consent is to the version that is asked
    for now, `current_version`.
    """

    purpose: Purpose
    given: bool
    is_current: bool
    current_version: str
    version: str | None = None
    text_hash: str | None = None
    locale: str | None = None
    given_at: dt.datetime | None = None
    withdrawn_at: dt.datetime | None = None


class ConsentStates(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per purpose."""

    consents: list[Consent]


class ConsentPut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which text the user has agreed to: its version, its SHA-256 in hex, its language."""

    version: Annotated[str, Meta(min_length=1, max_length=64)]
    text_hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    locale: Annotated[str, Meta(min_length=1, max_length=35)]


@operation(
    "GET",
    "/v1/consents",
    summary="Read the consent texts",
    description="The current texts, in German and English. Show them whole before asking.",
    tag="consents",
    replies={200: ConsentDocuments},
)
async def list_consents(call: Call[None, None]) -> Response:
    """Answer with the current texts."""
    return reply(
        ConsentDocuments(
            consents=[
                ConsentDocument(
                    purpose=each.purpose,
                    version=each.version,
                    locale=each.locale,
                    title=each.title,
                    text=each.text,
                    sha256=each.sha256,
                )
                for each in call.services.consents.current()
            ]
        )
    )


@operation(
    "GET",
    "/v1/me/consents",
    summary="Read one's consents",
    tag="consents",
    replies={200: ConsentStates},
    problems=(503,),
)
async def get_my_consents(call: Call[None, None]) -> Response:
    """Answer with the state of every purpose."""
    return reply(ConsentStates(consents=await _states(call)))


@operation(
    "PUT",
    "/v1/me/consents/{purpose}",
    body=ConsentPut,
    summary="Give a consent",
    description="Only to a text of the current version, named by its hash. The same again changes nothing.",
    tag="consents",
    replies={200: Consent},
    problems=(404, 409, 503),
)
async def put_consent(call: Call[ConsentPut, None]) -> Response:
    """Note the consent, if it is to the text that is shown now."""
    purpose, body = _purpose(call), call.body
    _check(call.services.consents, purpose, body)
    await consents.give(
        call.services.database,
        call.user_id,
        purpose,
        version=body.version,
        text_hash=bytes.fromhex(body.text_hash),
        locale=body.locale,
        client=_client(call.header(b"user-agent")),
    )
    return reply(await _state(call, purpose))


@operation(
    "DELETE",
    "/v1/me/consents/{purpose}",
    summary="Withdraw a consent",
    description="From the answer on, no model call and no evaluation of health data begins that needs it. "
    "Turns that are not finished are cancelled. Sending it again is harmless. Nothing is deleted by it.",
    tag="consents",
    replies={200: Consent},
    problems=(404, 503),
)
async def delete_consent(call: Call[None, None]) -> Response:
    """Withdraw; answer when nothing that needs it runs any more."""
    purpose = _purpose(call)
    await call.services.machine.commands.withdraw_consent(call.user_id, purpose)
    return reply(await _state(call, purpose))


def _purpose(call: Call[ConsentPut, None] | Call[None, None]) -> Purpose:
    purpose = purpose_of(call.path("purpose"))
    if purpose is None:
        raise NotFound(f"There is no such purpose; there are {', '.join(PURPOSES)}.")
    return purpose


def _check(catalogue: Catalogue, purpose: Purpose, body: ConsentPut) -> None:
    """Raise Conflict for an old version, InvalidRequest for anything else that names no current text."""
    current = catalogue.current_version(purpose)
    if body.version != current:
        reason = f"is not the current version, which is {current}"
        if catalogue.known(purpose, body.version):
            raise Conflict(f"$.version: {reason}", errors=(FieldError("$.version", reason),))
        raise _invalid("$.version", reason)
    text = catalogue.find(purpose, current, body.locale)
    if text is None:
        raise _invalid("$.locale", "is no language the text exists in")
    if text.sha256 != body.text_hash:
        raise _invalid("$.text_hash", "is not the hash of this version in this language")


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {reason}", errors=(FieldError(field, reason),))


def _client(user_agent: str | None) -> str | None:
    return _NOT_PRINTABLE.sub("?", user_agent)[:_MAX_CLIENT] if user_agent else None


async def _states(call: Call[ConsentPut, None] | Call[None, None]) -> list[Consent]:
    rows = {row.purpose: row for row in await consents.read(call.services.database, call.user_id)}
    return [_shown(call.services.consents, purpose, rows.get(purpose)) for purpose in PURPOSES]


async def _state(call: Call[ConsentPut, None] | Call[None, None], purpose: Purpose) -> Consent:
    return next(each for each in await _states(call) if each.purpose == purpose)


def _shown(catalogue: Catalogue, purpose: Purpose, row: consents.ConsentRow | None) -> Consent:
    current = catalogue.current_version(purpose)
    if row is None:
        return Consent(purpose=purpose, given=False, is_current=False, current_version=current)
    given = row.withdrawn_at is None and catalogue.counts(purpose, row.version)
    return Consent(
        purpose=purpose,
        given=given,
        is_current=given and row.version == current,
        current_version=current,
        version=row.version,
        text_hash=row.text_hash.hex(),
        locale=row.locale,
        given_at=row.given_at,
        withdrawn_at=row.withdrawn_at,
    )


OPERATIONS = (list_consents, get_my_consents, put_consent, delete_consent)
