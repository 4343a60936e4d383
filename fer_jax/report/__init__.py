"""HTML pages and figures of runs, studies and generators: reads files, computes nothing."""
