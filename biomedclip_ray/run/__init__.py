"""Who runs it: parts on Ray Data, the record of a run, progress, interrupts, preflight, pruning."""
