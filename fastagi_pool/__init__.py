"""fastagi_pool: a pre-forking FastAGI server for Asterisk."""
