"""What the survey files under others: decomposition, early exit, speculative sampling."""
