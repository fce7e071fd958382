"""The edge: a proxy that streams, balances, wakes machines and puts them to sleep."""
