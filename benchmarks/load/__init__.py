"""A load generator: any server that speaks our gRPC or OpenAI's HTTP, any arrivals, contracts by request.

`schedule` says what is sent when, `wire` and its two kinds send it, `driving` keeps to the times whatever the server
does, `summary` says what became of it, `report` shows that.
"""
