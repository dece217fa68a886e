"""Inputs that are wrong at random, and what the package makes of them; for developers."""
