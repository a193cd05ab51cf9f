"""Workers, a broker, a store and time itself in one thread, with a seed that decides the rest.

See docs/reliability.md for what is real in it, and what is simulated.
"""
