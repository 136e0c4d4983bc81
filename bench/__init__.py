"""Speed: each target against its yardstick in the same run, never a time alone."""
