"""Serves a cascade of language models; returns the cheapest answer whose calibrated confidence clears its threshold."""
