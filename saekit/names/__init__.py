"""The names of things: sites, refs, and which sites a dictionary reads and writes."""
