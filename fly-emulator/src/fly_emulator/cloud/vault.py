"""The secrets of an app: versions, digests, and what a machine of some version is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from fly_emulator.clock import timestamp
from fly_emulator.cloud.records import AppRecord, Secret


class Vault:
    """Implements `machines.provision.Secrets` over an app's record."""

    def __init__(self, record: AppRecord, key: str, save: Callable[[], None]) -> None:
        self._record = record
        self._key = key.encode()
        self._save = save

    @property
    def version(self) -> int:
        """The newest version; 0 before the first secret."""
        return self._record.secrets_version

    def values(self, version: int) -> Mapping[str, str]:
        """Return what a version held."""
        return self._record.past_secrets.get(version, {})

    def update(self, changes: Mapping[str, str | None]) -> int:
        """Set and unset, in one new version; return it. To unset what is not set is no error."""
        secrets, moment = dict(self._record.secrets), timestamp()
        for name, value in changes.items():
            if value is None:
                secrets.pop(name, None)
                continue
            old = secrets.get(name)
            created = moment if old is None else old.created_at
            secrets[name] = Secret(
                value=value, digest=self._digest(value), created_at=created, updated_at=moment
            )
        self._record.secrets = secrets
        self._record.secrets_version += 1
        held = {name: secret.value for name, secret in secrets.items()}
        self._record.past_secrets[self._record.secrets_version] = held
        self._save()
        return self.version

    def forget(self, used: frozenset[int]) -> None:
        """Drop the versions that no machine has."""
        kept = used | {self.version}
        for version in set(self._record.past_secrets) - kept:
            del self._record.past_secrets[version]

    def _digest(self, value: str) -> str:
        """Return 16 hexadecimal digits, as `fly secrets list` shows."""
        return hashlib.blake2b(value.encode(), key=self._key, digest_size=8).hexdigest()
