"""Learned values of noisy states: what a verifier will say of the finished image, asked in the middle of sampling."""
