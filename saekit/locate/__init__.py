"""Methods that locate the objects behind a behaviour."""
