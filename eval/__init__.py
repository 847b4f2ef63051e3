"""Measures the cascade: data sets, prompts, grading, collection, fitting, sweeps, reports."""
