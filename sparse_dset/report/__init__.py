"""One page of result rows."""
