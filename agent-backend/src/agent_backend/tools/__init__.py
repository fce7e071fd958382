"""The tool port and the tools."""
