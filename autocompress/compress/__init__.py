"""Everything that makes a model smaller and repairs it: one verb a file. Each takes a model and returns a new one."""
