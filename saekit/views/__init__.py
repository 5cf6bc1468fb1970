"""What a page or a command shows, as plain dictionaries. They are read from a workspace here; report and cli lay them out."""
