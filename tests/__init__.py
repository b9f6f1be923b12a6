"""A package of its own name: one of the packages that benchmarks are measured against installs a `tests` too."""
