"""An app as `flyctl apps list --json` prints it: one large struct, of which its query fills a few fields.

Source: superfly/fly-go `types.go` (App, Organization, AppCertificate).
"""

from __future__ import annotations

from typing import Any, Final

from fly_emulator.flyctl.shapes import release

_NODES: Final[dict[str, Any]] = {"Nodes": None}
_LISTS: Final[dict[str, Any]] = {"Nodes": None, "Edges": None}
_IMAGE: Final = dict.fromkeys(("Registry", "Repository", "Tag", "Version", "Digest"), "")
_CERTIFICATE: Final[dict[str, Any]] = {
    "ID": "",
    "AcmeDNSConfigured": False,
    "AcmeALPNConfigured": False,
    "Configured": False,
    "CertificateAuthority": "",
    "CreatedAt": "0001-01-01T00:00:00Z",
    "DNSProvider": "",
    "DNSValidationInstructions": "",
    "DNSValidationHostname": "",
    "DNSValidationTarget": "",
    "Hostname": "",
    "Source": "",
    "ClientStatus": "",
    "IsApex": False,
    "IsWildcard": False,
    "ValidationErrors": None,
    "Issued": _NODES,
}


def app(found: dict[str, Any]) -> dict[str, Any]:
    """Return an app of the query of `apps list` as flyctl shows it."""
    current = found["currentRelease"]
    return {
        "ID": found["id"],
        "InternalNumericID": 0,
        "Name": found["name"],
        "State": "",
        "Status": found["status"],
        "Deployed": found["deployed"],
        "Hostname": found["hostname"],
        "AppURL": "",
        "Version": 0,
        "NetworkID": 0,
        "Network": found["network"],
        "Release": None,
        "Organization": _organization(found["organization"]),
        "Secrets": None,
        "CurrentRelease": release(current) if current else None,
        **dict.fromkeys(("Releases", "IPAddresses", "EgressIpAddresses"), _NODES),
        "SharedIPAddress": "",
        "CNAMETarget": "",
        "IPAddress": None,
        "Certificates": _NODES,
        "Certificate": _CERTIFICATE,
        "PostgresAppRole": None,
        "Image": None,
        "ImageUpgradeAvailable": False,
        "ImageVersionTrackingEnabled": False,
        "ImageDetails": _IMAGE,
        "LatestImageDetails": _IMAGE,
        "PlatformVersion": found["platformVersion"],
        "Machines": _NODES,
        "CurrentLock": None,
    }


def _organization(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "ID": "",
        "InternalNumericID": "",
        "Name": found["name"],
        "RemoteBuilderImage": "",
        "RemoteBuilderApp": None,
        "Slug": found["slug"],
        "RawSlug": "",
        "Type": "",
        "PaidPlan": False,
        "Billable": False,
        "Settings": None,
        "AllowedReplaySourceOrgSlugs": None,
        "AllowAllCrossNetworkReplays": False,
        "WireGuardPeer": None,
        "WireGuardPeers": _LISTS,
        "DelegatedWireGuardTokens": _LISTS,
        "LoggedCertificates": None,
    }
