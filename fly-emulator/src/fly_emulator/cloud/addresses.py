"""IP addresses and regions: flyctl wants them at the first deploy; nothing listens at the addresses.

They are of the blocks that are kept for examples (RFC 5737, RFC 3849), so that nobody is called by mistake.
"""

from __future__ import annotations

from secrets import randbelow, token_hex
from typing import Any, Final

import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.cloud.records import Address, AddressType, AppRecord
from fly_emulator.errors import StateError

SHARED: Final = "192.0.2.1"


def assign(app: AppRecord, kind: object, region: str) -> Address:
    """Give an app an address; of a shared one it has at most one. Raises StateError (422)."""
    try:
        wanted: AddressType = msgspec.convert(kind, AddressType)
    except msgspec.ValidationError as error:
        raise StateError(f"invalid_argument: type: {error}", status=422) from error
    if wanted == "shared_v4":
        app.addresses = [each for each in app.addresses if each.type != "shared_v4"]
    made = Address(
        id=f"ip-{token_hex(6)}",
        ip=_new(wanted),
        type=wanted,
        region=region or "global",
        created_at=timestamp(),
    )
    app.addresses = [*app.addresses, made]
    return made


def _new(kind: AddressType) -> str:
    match kind:
        case "shared_v4":
            return SHARED
        case "v4":
            return f"198.51.100.{randbelow(254) + 1}"
        case "v6":
            return f"2001:db8::{randbelow(0xFFFE) + 1:x}:{randbelow(0xFFFE) + 1:x}"
        case "private_v6":
            return f"fdaa:0:1:0:1::{randbelow(0xFFFE) + 1:x}"


def release(app: AppRecord, ip: str) -> None:
    """Take an address back. Raises StateError (404)."""
    if all(each.ip != ip for each in app.addresses):
        raise StateError(f"not_found: ip address not found: {ip}", status=404)
    app.addresses = [each for each in app.addresses if each.ip != ip]


def assignment(each: Address) -> dict[str, Any]:
    """Write an address as the Machines API does."""
    return {
        "ip": each.ip,
        "region": each.region,
        "service_name": "",
        "shared": each.type == "shared_v4",
        "created_at": each.created_at,
    }


def region(code: str) -> dict[str, Any]:
    """Write the one region there is, as GraphQL and, with other names, the Machines API spell it."""
    place = {"code": code, "name": f"{code} (emulated)", "latitude": 0.0, "longitude": 0.0}
    return {
        **place,
        "deprecated": False,
        "gatewayAvailable": True,
        "gateway_available": True,
        "requiresPaidPlan": False,
        "requires_paid_plan": False,
    }
