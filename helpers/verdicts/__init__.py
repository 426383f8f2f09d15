"""How an outcome becomes a verdict."""

from helpers.verdicts.marks import clause, deviation

__all__ = ["clause", "deviation"]
