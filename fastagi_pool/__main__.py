"""``python -m fastagi_pool``: the same as the ``fastagi-pool`` command."""

from fastagi_pool.cli import main

main()
