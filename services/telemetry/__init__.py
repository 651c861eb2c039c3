"""What a process tells its operators. `logs` is configured once per process, before anything else is built."""
