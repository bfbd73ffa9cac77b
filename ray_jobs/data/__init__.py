"""From a raw source to clean, split, digested and tokenised data."""
