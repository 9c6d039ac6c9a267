"""Texts on their way in: checked, equal ones once, as token ids."""
