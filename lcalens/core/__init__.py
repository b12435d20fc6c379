"""What every room stands on: errors, checks, progress, results, cells, provenance, statistics, tokens."""
