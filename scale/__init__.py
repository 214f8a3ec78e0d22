"""More than one device: many runs over workers (``batch``), and the rows of one search over workers (``rows``)."""
