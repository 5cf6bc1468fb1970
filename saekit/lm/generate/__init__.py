"""Generation with interventions."""
