"""Machines: real processes with Fly's states, their fleet and the Machines API."""
