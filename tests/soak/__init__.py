"""Soak: workers under a steady load for an hour, and nothing that grows.

``make soak`` runs it; ``test_soak.py`` for half a minute, once as it should be and once for each
thing that a task can leak. Reads ``/proc``, so it needs Linux.
"""
