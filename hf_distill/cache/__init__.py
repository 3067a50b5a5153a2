"""The cache of targets: run a teacher once over the data, store its targets, and read them back by example."""
