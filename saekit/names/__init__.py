"""Names: sites, refs, positions, and which sites a dictionary reads and writes. No module here loads torch."""
