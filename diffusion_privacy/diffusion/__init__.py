"""Forward SDEs, training objective, samplers and likelihood of score-based models."""
