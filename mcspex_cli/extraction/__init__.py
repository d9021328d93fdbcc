"""From mixture to target."""
