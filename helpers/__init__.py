"""What the suites are written with; see README.md for the map."""
