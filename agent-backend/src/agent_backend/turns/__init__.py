"""Running turns: commands, the runner, fan-out to readers, recovery."""
