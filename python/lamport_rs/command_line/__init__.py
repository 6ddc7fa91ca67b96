"""The command line: what is available here, a demonstration, and a benchmark."""
