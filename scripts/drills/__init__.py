"""Drills: ten things that go wrong with a pool, done on purpose, to see what its operator sees of them."""
