"""Generated input: what no one thought of, for the parser and for the commands."""
