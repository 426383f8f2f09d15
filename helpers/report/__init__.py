"""The outputs of a run that people keep: the HTML report, result files, comparisons."""
