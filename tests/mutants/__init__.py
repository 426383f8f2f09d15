"""Kernel mutants: KVM broken by one edit each; ``python -m tests.mutants`` judges them."""
