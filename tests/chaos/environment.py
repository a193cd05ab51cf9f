"""How a chaos worker learns what it is: the names of environment variables."""

#: ``claims``, ``bare``, or the name of a package that locks.
PROTECTION = "CHAOS_PROTECTION"
#: the URL of the ledger's database
LEDGER = "CHAOS_LEDGER"
