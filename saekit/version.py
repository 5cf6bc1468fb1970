"""The version of saekit. `pyproject.toml` has the same number."""

VERSION = "0.1.0"
