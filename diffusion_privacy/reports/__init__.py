"""Machine-readable results, figures and the self-contained HTML report."""
