"""The annex where science meets files: runs in worker processes, paths in, small results out."""
