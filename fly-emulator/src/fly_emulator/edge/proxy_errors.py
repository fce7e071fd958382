"""Fly Proxy's errors: their codes, words and statuses.

Codes: superfly/docs monitoring/error-codes. Words: log lines of users in public repositories and issues
(the docs give titles only). Statuses: 503 without a candidate and 502 for a broken upstream are seen
there; the others are not documented.
"""

from __future__ import annotations


class ProxyError(Exception):
    """A request that the edge answers itself."""

    def __init__(self, code: str, text: str, status: int) -> None:
        super().__init__(f"[{code}] {text}")
        self.code = code
        self.text = text
        self.status = status


def no_candidate(attempts: int, last: str | None) -> ProxyError:
    """Return PR03 with the last error, or PR04 where there was none."""
    text = f"could not find a good candidate within {attempts} attempts at load balancing"
    if last is None:
        return ProxyError("PR04", text, 503)
    return ProxyError("PR03", f"{text}. last error: {last}", 503)


def no_such_machine(machine_id: str) -> ProxyError:
    """Return the error for `fly-force-instance-id` and `fly-replay: instance=` in vain."""
    return ProxyError("PR02", f"could not find machine {machine_id}", 404)


def refused(port: int) -> str:
    """Return what is logged when nobody listens on the internal port."""
    return (
        f"[PC01] instance refused connection. is your app listening on 0.0.0.0:{port}? make sure it is not "
        "only listening on 127.0.0.1 (hint: look at your startup logs, servers often print the address they "
        "are listening on)"
    )


def incomplete(cause: str) -> ProxyError:
    """Return the error of an upstream that broke before the head of its answer."""
    return ProxyError("PU02", f"could not complete HTTP request to instance: {cause}", 502)


def too_large(limit: int) -> ProxyError:
    """Return the error of a request that should be replayed and was not kept."""
    return ProxyError("PA01", f"request is larger than {limit} bytes and cannot be replayed", 413)
