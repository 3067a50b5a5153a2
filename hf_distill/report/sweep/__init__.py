"""The result of a sweep: its table, which differences are within noise, plot, page and lines for the terminal."""
