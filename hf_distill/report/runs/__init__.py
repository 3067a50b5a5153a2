"""Several finished runs beside each other: read from their `report.json`, compared, as page and for the terminal."""
