"""The browser explorer of `interp` (optional extra `app`).

It is not there yet: this package only holds its name, so that the wheel's layout is final from the first release.
"""
