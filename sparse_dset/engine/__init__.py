"""Training, evaluation and the files they write."""
