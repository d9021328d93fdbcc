"""Models: their names, where they come from, their files, and others made into ours."""
