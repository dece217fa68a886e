"""Data sets, their transforms and batches."""
