"""Ablation studies: what their numbers are allowed to say (`interp.studies.statistics`)."""
