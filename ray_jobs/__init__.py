"""The jobs people submit to a Ray cluster, one file per job, and the steps that they share."""
