"""Methods of tuning, one file each. Rows are in :data:`saekit.steer.optimise.tuning.TUNERS`."""
