"""What the probes share: the verdict's rule, cells that are kept, figures, the page, and the command line."""
