"""How ports are opened: early, so that a request that woke us waits in the backlog."""

from __future__ import annotations

import errno
import socket

from agent_backend.errors import OperatorError

_BACKLOG = 2048


def listen(host: str, port: int, variable: str) -> socket.socket:
    """Open a listening socket; `::` takes IPv4 as well, and is IPv4 alone where there is no IPv6.

    Raises OperatorError naming the port and `variable`, by which another one is chosen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        if host == "::" and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            return listen("0.0.0.0", port, variable)  # noqa: S104 - all addresses is what `::` asks for
        raise _cannot_listen(host, port, variable, error) from error
    except ValueError:
        return listen("0.0.0.0", port, variable)  # noqa: S104 - as above: no dual stack here


def _cannot_listen(host: str, port: int, variable: str, error: OSError) -> OperatorError:
    if error.errno == errno.EADDRINUSE:
        return OperatorError(
            f"port {port} is in use",
            hint=f"stop what listens there, or choose another: {variable}={port + 1}",
        )
    if error.errno == errno.EACCES:
        return OperatorError(f"port {port} may not be opened", hint=f"choose one above 1023: {variable}=...")
    return OperatorError(
        f"cannot listen on {host} port {port}: {error.strerror}", hint=f"check HOST and {variable}"
    )
