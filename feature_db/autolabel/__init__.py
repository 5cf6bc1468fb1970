"""Labels that a language model writes: :func:`feature_db.autolabel.labelling.autolabel`."""
