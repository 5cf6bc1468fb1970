"""`python -m saekit` is `saekit`."""

from saekit.cli import main

if __name__ == "__main__":
    main()
