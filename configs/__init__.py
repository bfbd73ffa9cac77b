"""Settings: one typed schema (``schema.py``), its loader (``loading.py``) and the YAML files that ship with it."""
