"""One run of a recipe: checked, prepared, trained, evaluated and reported."""
