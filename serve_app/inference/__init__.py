"""Texts to probabilities, without Ray or HTTP: packing, attention, models, the saved-model folder, the engine."""
