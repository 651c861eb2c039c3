"""How the cluster is run: on this machine (`deploy.local`), in containers, on Kubernetes."""
