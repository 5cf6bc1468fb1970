"""The SQLite file: tables, connections, checksums, reading and editing."""
