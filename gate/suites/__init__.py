"""Suites of behavioural tests that ship with the gate; ``gate.suite`` reads them by their bare names."""
