"""A real Asterisk for the tests: got (packages), run (server), spoken to (ami), called through (calls).

Beside it stand the pool under test (service) and the gate where handlers wait for the test (gate).
"""
