"""Chaos: real workers on real servers, killed, frozen and cut off at random, and nothing lost.

``make chaos`` runs it for minutes; ``test_chaos.py`` for seconds. Nothing here asserts how often
something happened, only what must never happen.
"""
