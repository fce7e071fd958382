"""Transport only: HTTP, SSE and WebSocket in, commands and streams out."""
