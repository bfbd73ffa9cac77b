"""Texts to probabilities, without Ray and without HTTP: packing, attention, models, the saved-model folder, the engine."""
