"""What a router costs: requests and tokens per second and the latency it adds, with stub workers that cost little."""
