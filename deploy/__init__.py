"""The composition root: settings, command line, scoring worker, registry, local machine."""
