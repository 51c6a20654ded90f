"""The whole server, run as its operator runs it, and called as Asterisk calls it."""
