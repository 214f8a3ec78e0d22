"""``testtime demo``: the embedded models, searched, as one page."""
