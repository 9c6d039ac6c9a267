"""A change of encoder by a second column.

``change`` says how far each change has got and whether searches may switch, ``costs`` what one takes.
"""
