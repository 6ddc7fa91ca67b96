"""`python -m lamport_rs`: what is available here, and a demonstration."""
