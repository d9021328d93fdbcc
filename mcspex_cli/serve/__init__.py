"""The same as `extract` in a browser: sessions, a queue of extractions, and the page."""
