"""Many runs: rows of a table, each run once by one of several workers, whatever dies."""
