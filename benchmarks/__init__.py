"""What claims cost, as ratios; see README.md."""
