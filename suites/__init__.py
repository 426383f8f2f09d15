"""Tests that judge the kernel, a file per area."""
