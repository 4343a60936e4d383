"""A trained run, used on whatever faces there are."""
