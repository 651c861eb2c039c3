"""The simulator runs a cluster in virtual time: engines whose steps take the time that a performance model says.

The admission core and the step composer that ship decide in it, and beside them the schedulers of others. `README.md`
says what is simulated, how a run goes and how a policy is added. Nothing here is measured on a machine.
"""
