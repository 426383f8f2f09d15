"""Turn the outcomes of tests into verdicts on clauses."""

from helpers.verdicts.marks import clause, deviation

__all__ = ["clause", "deviation"]
