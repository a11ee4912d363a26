"""Views of runs: the live screen, comparisons, reports and charts."""
