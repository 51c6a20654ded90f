"""Commands to look at a pool and to operate it; those that serve, check and test are in ``cli``."""
