"""What steering does to generations, and at which cost."""
