"""The command line, `raytrain`."""
