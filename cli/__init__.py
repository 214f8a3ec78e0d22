"""The command line, ``testtime``."""
