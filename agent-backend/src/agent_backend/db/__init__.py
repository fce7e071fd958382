"""Postgres, concrete, without a port."""
