"""Settings: one typed schema (``schema.py``), how it is loaded (``loading.py``) and the YAML files that ship with it."""
