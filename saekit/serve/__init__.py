"""The local web application over workspaces: pages for people, and endpoints for their programs. One process, no account."""
