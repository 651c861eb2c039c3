"""What other services import to talk to the cluster: the generated stubs of `proto/slos_serve/v1`, in `slos_serve.v1`."""
