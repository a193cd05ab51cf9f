"""Proof that the stores do what the protocol says, also while everything around them breaks.

``specification`` says what one record may answer and ``linearizability`` searches for an order of
a history's operations that it allows; ``history`` records what clients asked and heard;
``clients`` ask at random; ``arenas`` have the stores, their servers and their faults; ``run`` is
``make proof``. ``model`` has the protocol as a model for spin.
"""
