"""Templates of the pages that ``gate.pages`` renders."""
