"""The version, in one place and importable without anything else."""

VERSION = "0.1.0"
