"""What other services import to talk to the cluster: the stubs of `proto/slos_serve/v1`, in `slos_serve.v1`."""
