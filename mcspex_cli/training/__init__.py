"""From speech to weights."""
