"""The terminal: commands, options and what they print."""
