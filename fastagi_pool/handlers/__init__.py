"""Handlers that come with fastagi_pool. They hold calls and contexts, and know nothing of the server."""
