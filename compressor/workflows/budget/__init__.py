"""Budgets: which scheme each tensor gets is chosen here, for a size, a ratio, bits a weight, or a limit of error.

candidates   what a tensor may become: `dense`, `int4g64`, `mxfp4`, `int:bits=4,group_size=32`
survey       one pass that measures every candidate's error of every tensor, kept in a table (`table`)
allocation   the choice: along the lower convex hull of size and error, then filled up to the budget
curve        the whole course of it: what every size would cost
fitting      the request as a user makes it, and the ordinary recipe that comes of it
tune         the smallest point of the curve at which the user's own measure holds
"""
