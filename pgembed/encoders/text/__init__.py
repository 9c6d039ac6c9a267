"""Texts on their way in: checked, each different one once, and as token ids."""
