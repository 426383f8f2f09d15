"""Broken kernels, each by one edit, that the suite must catch; ``python -m tests.mutants``."""
