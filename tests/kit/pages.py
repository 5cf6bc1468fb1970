"""Inputs of pages in tests: hostile text, and the figures of a dictionary."""

EVIL = "<script>alert('x')</script>"
QUALITY = {
    "fvu": 0.05,
    "l0": 16.0,
    "dead_fraction": 0.01,
    "density_tokens": 4096,
    "ce": 1.5,
    "ce_spliced": 1.6,
    "ce_zero": 9.0,
    "ce_recovered": 0.98,
    "kl": 0.1,
    "heldout_tokens": 1000.0,
}
