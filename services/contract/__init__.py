"""Reading and writing of contracts in every form that clients use: messages, JSON and headers.

Clients write contracts as protocol messages, as JSON under `slo`, and as HTTP headers or gRPC metadata, which have the
same names. Each form has one reader and one writer: `slos_serve.contract` for messages, which clients need too, `body`
for JSON and `headers` for headers. All of them read and write `slos_serve.Contract`, where a field that the client left
out is unset; `resolution` makes of it, and of a profile, the contract that is planned.

The message or body wins over headers, which win over the profile. This holds for each of these by itself: the first
token, the output tokens, those of a session's last request, the value, and what to do on overload. Bounds of figures
stand in `services.slo.contract` alone. Every reader raises `ContractError` with the name that its client wrote.
"""
