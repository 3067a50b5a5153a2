"""Files that are whole or absent, locked while they are used, and known to be ours."""
