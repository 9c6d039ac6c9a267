"""What every helper is built of: what is searched, what for, and the nearest rows as a subquery.

====================  =====================================================================================
file                  what it is for
====================  =====================================================================================
subject, vectors      what is searched, and what for: a text, a vector, a row
parameters            the parameters of the latter: texts are encoded when the statement is executed
asked                 several queries as rows
sums                  ``vector_of``: sums of vectors as a query
owners                whose parts are searched
arguments             what the arguments of the helpers may be
nearest               the nearest rows as a subquery, exact or through an index
blocks                vectors in arrays, compared without being read anew for each comparison
eligibility           which declared index can be used
numbering             rows under dense numbers, and which of them are copies of others
settings              pgvector's search settings, asked for within the statement
statement             selects that refuse late clauses; rows joined back to what the caller selects
templates             statements that are built once, and come again with other values
reading               rows with a text of each
====================  =====================================================================================
"""
