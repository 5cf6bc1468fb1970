"""The tables: schema, writing, reading."""
