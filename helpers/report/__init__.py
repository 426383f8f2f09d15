"""What a run leaves for people: the parts that this suite adds to pytest-html's report."""
