"""What configured credentials look like: which key is which, and which one is meant instead.

Pure, and no text here shows any part of a value. Sources: Supabase's guides "API keys", "Connect to your
database" and "JWT Claims Reference", Anthropic's "API keys"; see docs/design/identity.md.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

MIN_HS256_SECRET = 32
"""Bytes of HS256's digest: a shorter key is weaker than its signature (RFC 7518, 3.2)."""
HOME_REGION = "eu-central-1"
"""Frankfurt, where the machines are and health data stays."""

_SECRET = re.compile(r"sb_secret_[A-Za-z0-9_-]{8,}")
_JWT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")
_LOOKS_SECRET = re.compile(
    r"sb_secret_|sbp_|\bsk-(?:ant|proj)-|\bsk-[A-Za-z0-9]{16}"
    r"|eyJ[A-Za-z0-9_-]{8}|://[^/@\s]*:[^/@\s]*@|PRIVATE KEY|FlyV1|\bfo1_|\bgh[opsu]_"
)
_POOLER = re.compile(r"aws-\d+-(?P<region>[a-z0-9-]+)\.pooler\.supabase\.com")
_DIRECT = re.compile(r"db\.(?P<ref>[a-z0-9]+)\.supabase\.co")
_PROJECT = re.compile(r"(?P<ref>[a-z0-9]+)\.supabase\.co")
_TRANSACTION_PORT = 6543
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})

_TAKE_SECRET = "take a secret key, sb_secret_...: Supabase dashboard, Settings > API Keys"  # noqa: S105 - a hint


class Found(NamedTuple):
    """Something about a value: `problem` follows the variable's name in a sentence. `fatal`: or a warning."""

    problem: str
    hint: str
    fatal: bool = True


def is_supabase(host: str) -> bool:
    """Say whether a host is a database of Supabase's, direct or behind its pooler."""
    return host.removesuffix(".").endswith((".supabase.co", ".pooler.supabase.com"))


def looks_secret(text: str) -> bool:
    """Say whether a text looks like a credential, so that it is not shown wherever it was put."""
    return _LOOKS_SECRET.search(text) is not None


def project_ref(supabase_url: str | None) -> str | None:
    """Return the project's reference from https://REF.supabase.co; None for other addresses."""
    match = _PROJECT.fullmatch(urlsplit(supabase_url).hostname or "") if supabase_url else None
    return match["ref"] if match else None


def supabase_url(value: str) -> list[Found]:
    """Look at the project's address."""
    parts = urlsplit(value)
    if parts.hostname == "supabase.com" or parts.path.strip("/") or parts.query or parts.fragment:
        return [
            Found(
                "is not a project's address alone", "write https://REF.supabase.co, without a path after it"
            )
        ]
    return []


def service_key(value: str, project: str | None, now: float) -> list[Found]:
    """Look at the backend's key; `project` is SUPABASE_URL's reference, `now` seconds since 1970."""
    if _SECRET.fullmatch(value):
        return []
    if value.startswith("sb_publishable_"):
        return [Found("is a publishable key, which belongs in the app", _TAKE_SECRET)]
    if value.startswith("sbp_"):
        return [Found("is a personal access token of Supabase's management API", _TAKE_SECRET)]
    claims = _claims(value)
    if claims is None:
        return [Found("is neither a secret key nor a legacy service_role key", _TAKE_SECRET)]
    return _legacy_key(claims, project, now)


def _claims(value: str) -> dict[str, Any] | None:
    """Return what a JWT says of itself; its signature is not ours to check."""
    if not _JWT.fullmatch(value):
        return None
    payload = value.split(".")[1]
    try:
        return msgspec.json.decode(
            urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=dict[str, Any]
        )
    except (binascii.Error, ValueError):
        return None


def _legacy_key(claims: dict[str, Any], project: str | None, now: float) -> list[Found]:
    role, ref, ends = claims.get("role"), claims.get("ref"), claims.get("exp")
    if role == "anon":
        return [Found("is the anon key, which belongs in the app", _TAKE_SECRET)]
    if role != "service_role":
        return [Found("is a token, but no service_role key", _TAKE_SECRET)]
    if isinstance(ends, (int, float)) and ends <= now:
        return [Found("has expired", _TAKE_SECRET)]
    if project is not None and isinstance(ref, str) and ref != project:
        return [Found("is another project's than SUPABASE_URL", "take both from the same project")]
    end = "is a legacy key, which Supabase takes until the end of 2026"
    return [Found(end, _TAKE_SECRET, fatal=False)]


def anthropic_key(value: str, base_url: str) -> list[Found]:
    """Look at the key of the Messages API; other addresses than Anthropic's may have other keys."""
    if urlsplit(base_url).hostname != "api.anthropic.com":
        return []
    hint = "make an API key in the Claude Console, sk-ant-api...: Settings > API keys"
    if value.startswith("sk-ant-admin"):
        return [Found("is an admin key, which cannot call the model", hint)]
    if value.startswith(("sk-ant-oat", "sk-ant-ort")):
        return [Found("is a subscription's token, which is for Claude Code", hint)]
    if not re.fullmatch(r"sk-ant-[A-Za-z0-9_-]+", value):
        return [Found("does not have the form of an Anthropic API key", hint)]
    return []


def hs256_secret(value: str) -> list[Found]:
    """Look at the legacy shared secret."""
    hint = "it is the legacy JWT secret: Supabase dashboard, Settings > JWT Keys; leave it out if you can"
    if "-----BEGIN" in value or value.startswith(("{", "ssh-")):
        return [Found("is a key of another kind; a public key must never be a shared secret", hint)]
    if value.startswith("sb_") or _claims(value) is not None:
        return [Found("is an API key or a token, not the secret that tokens are signed with", hint)]
    if len(value.encode()) < MIN_HS256_SECRET:
        return [Found(f"has fewer than {MIN_HS256_SECRET} bytes, which can be guessed", hint)]
    accepted = "lets tokens in that whoever knows it can make"
    return [Found(accepted, "remove it once the project signs with ES256", fatal=False)]


def sentry_dsn(value: str, *, development: bool) -> list[Found]:
    """Look at the address that errors are sent to: scheme://KEY@HOST/PROJECT, as Sentry's SDKs take it."""
    token = value.startswith("sntry")
    wrong = "is an auth token of Sentry, not a DSN" if token else _wrong_dsn(value, development=development)
    hint = "take it from Sentry: project settings > Client Keys (DSN): https://KEY@HOST/PROJECT"
    return [Found(wrong, hint)] if wrong else []


def _wrong_dsn(value: str, *, development: bool) -> str | None:
    try:
        parts = urlsplit(value)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "is not a DSN"
    if not whole or not re.fullmatch(r"[A-Za-z0-9-]+", parts.username or ""):
        return "is not a DSN"
    if parts.password is not None:
        return "has a secret key in it, which Sentry has given up"
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)*/[0-9]+", parts.path) or parts.query or parts.fragment:
        return "does not end with the number of a project"
    if parts.scheme == "http" and not development:
        return "does not begin with https://, which only development may do"
    return None


# --- the database ---------------------------------------------------------------------------------


def unreadable_database_url(value: str) -> Found | None:
    """Explain why a database URL cannot be read, where that can be told."""
    if "[YOUR-PASSWORD]" in value:
        return Found("still has [YOUR-PASSWORD] in it", "put the role's password there, percent-encoded")
    try:
        parts = urlsplit(value)
    except ValueError:
        return None
    # Of two @ asyncpg takes the first, and urlsplit the last.
    if parts.fragment or ("@" in value and parts.netloc.count("@") != 1) or not _has_usable_port(parts):
        return Found(
            "cannot be taken apart into user, password, host and port",
            "percent-encode the password: # is %23, / is %2F, @ is %40, : is %3A, ? is %3F",
        )
    try:
        parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        return Found("has something after its ? that is not NAME=VALUE", "such as ?sslmode=verify-full")
    return None


def _has_usable_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def database_url(value: str, project: str | None) -> list[Found]:
    """Look at a database URL that can be read."""
    parts = urlsplit(value)
    host, user = parts.hostname or "", unquote(parts.username or "")
    if parts.port == _TRANSACTION_PORT and host not in _HERE:
        return [
            Found(
                f"names port {_TRANSACTION_PORT}, the transaction pooler: it has no LISTEN, no prepared "
                "statements and no settings that last",
                "take the session pooler (same host, port 5432) or the direct connection",
            )
        ]
    pooler, direct = _POOLER.fullmatch(host), _DIRECT.fullmatch(host)
    if pooler and "." not in user:
        return [
            Found(
                "names a pooler and no project",
                "write the user as ROLE.REF, such as agent_backend_login.abcdefgh",
            )
        ]
    ref = user.rpartition(".")[2] if pooler else direct["ref"] if direct else None
    if ref is not None and project is not None and ref != project:
        return [Found("is another project's than SUPABASE_URL", "take both from the same project")]
    return _notes(pooler, direct=direct is not None)


def _notes(pooler: re.Match[str] | None, *, direct: bool) -> list[Found]:
    notes: list[Found] = []
    if pooler and pooler["region"] != HOME_REGION:
        hint = f"health data belongs in {HOME_REGION} (Frankfurt), where the machines are"
        notes.append(Found(f"is in {pooler['region']}", hint, fatal=False))
    if direct:
        hint = "Fly has IPv6; where you have none, such as on a laptop, take the session pooler"
        notes.append(Found("names the direct connection, which is IPv6 only", hint, fatal=False))
    return notes


def plain_database(value: str) -> list[Found]:
    """Look whether a database across a network must show whose it is; Fly's own network is encrypted.

    `sslmode=require` is TLS with anybody: asyncpg then takes every certificate.
    """
    parts = urlsplit(value)
    # As asyncpg reads it: of several the last counts, and names may be percent-encoded.
    said = parse_qs(parts.query).get("sslmode", [""])[-1]
    far = [each for each in _hosts(parts) if not _is_near(each)]
    if not far or said == "verify-full":
        return []
    hint = "end it with ?sslmode=verify-full, so that nobody else can answer or read along"
    if said not in {"require", "verify-ca"}:
        return [Found("does not insist on TLS", hint)]
    unchecked = f"says sslmode={said}, which does not check whose certificate it is"
    if any(is_supabase(each) for each in far):
        return [Found(unchecked, hint)]
    hint = "end it with ?sslmode=verify-full&sslrootcert=FILE, the provider's root certificate"
    return [Found(unchecked, hint, fatal=False)]


def _hosts(parts: SplitResult) -> list[str]:
    """Return all that asyncpg would try: several stand between commas; where none is named, in `host=`."""
    named = parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host", [""])[-1]
    return [_host(each).lower() for each in named.split(",") if each]


def _host(spec: str) -> str:
    """Return the host of HOST, HOST:PORT, [IPv6]:PORT or a socket's folder."""
    if spec.startswith("["):
        return spec[1:].partition("]")[0]
    return spec if spec.startswith("/") else spec.partition(":")[0]


def plain_http(value: str) -> list[Found]:
    """Look whether an address across a network is http://, where all could be read on the way."""
    parts = urlsplit(value)
    if parts.scheme != "http" or _is_near(parts.hostname or ""):
        return []
    return [Found("begins with http://, which sends keys and health data in the clear", "take https://")]


def _is_near(host: str) -> bool:
    return host in _HERE or host.startswith("/") or host.endswith((".internal", ".flycast"))
