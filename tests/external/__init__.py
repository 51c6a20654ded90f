"""Tests against the real outside world: Asterisk and database servers."""
