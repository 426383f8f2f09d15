"""Kernels to judge: finding, fetching and booting them."""
