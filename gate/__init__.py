"""The promotion gate: scoring on the frozen test split, the decision, the registry, the command line."""
