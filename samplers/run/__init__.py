"""A run and its books: session, trace, ``run_search``."""
