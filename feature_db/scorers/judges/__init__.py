"""Scores that need a judge: a language model at an endpoint or in this process (:mod:`feature_db.chat`)."""
