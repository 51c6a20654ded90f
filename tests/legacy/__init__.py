"""Legacy scripts as people write them, run by a real pool and, for comparison, as Asterisk runs them."""
