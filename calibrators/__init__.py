"""Arrays in, probabilities out: families, robust objectives, scores and artefacts. Knows nothing of engines or HTTP."""
