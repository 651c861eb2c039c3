"""A fuzzer of everything that reads what others wrote: every RPC, HTTP, Redis, sessions of workers, and lease desks.

`python -m tests.fuzz --messages 1000000 --seed 1 --directory .slos-serve/fuzz` runs a whole cluster with emulated
engines in one process, sends it mutated inputs, and goes on where it stopped. Each input is made of the seed and its
own number, so that any of them can be sent again alone. Every input must be served or refused by a typed error.
"""
