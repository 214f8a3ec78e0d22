"""The official side of the parity table: the published packages themselves, called on photographs.

Runs in an environment of its own (``tools/official_environment.py`` builds it), because the packages pin versions that
no current installation has. Nothing here imports the pack; ``bench.parity_link`` starts
``python -m bench.official ROW FOLDER`` in the repository's root and reads the files that it leaves. Models are small
and random, made with the packages' own classes; every preprocessing is the published one at its published size.
"""
