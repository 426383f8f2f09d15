"""Tests that judge the suite."""
