"""Many mixtures: which there are, whose voice each is to give, the work, and the reports."""
