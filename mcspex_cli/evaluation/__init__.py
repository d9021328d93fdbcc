"""How good an estimate is."""
