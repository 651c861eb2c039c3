"""A cluster in virtual time: the production planner and step composer, and the schedulers of others, on engines whose
steps take the performance model's time.

`events` is the clock, `engine` a worker, `cluster` all of them with requests coming in, `policies` who decides,
`scenarios` what comes, `capacity` the rate at which promises are still kept. Nothing here is measured on a machine.
"""
