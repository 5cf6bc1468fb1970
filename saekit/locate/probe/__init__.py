"""Probes: what can be read from activations by a linear classifier, and how much of it is the probe's own work."""
