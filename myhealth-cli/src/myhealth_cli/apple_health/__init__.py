"""Apple Health exports: read them as a stream of samples, and generate realistic ones."""

from myhealth_cli.apple_health.parse import Export, Report

__all__ = ["Export", "Report"]
