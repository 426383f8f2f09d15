"""Clauses, known deviations, and how an outcome becomes a verdict."""

from helpers.verdicts.clauses import CLAUSES, Clause, clause
from helpers.verdicts.deviations import DEVIATIONS, Deviation, deviation

__all__ = ["CLAUSES", "DEVIATIONS", "Clause", "Deviation", "clause", "deviation"]
