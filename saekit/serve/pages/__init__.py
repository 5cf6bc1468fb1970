"""The routers of pages. A page is a function that returns a plain dict, and a template that shows it."""
