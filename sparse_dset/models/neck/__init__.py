"""Cross-scale fusion."""
