"""Serving: the inference engine (``inference/``) and the Ray Serve application on it (``app.py``)."""
