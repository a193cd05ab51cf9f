"""How a soak worker learns what it is: the names of environment variables."""

#: What each task leaves behind on purpose, one of ``tasks.LEAKS``; nothing if not set.
LEAK = "SOAK_LEAK"
