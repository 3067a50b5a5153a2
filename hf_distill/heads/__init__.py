"""Models taken apart at their output heads."""
