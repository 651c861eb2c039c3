"""The command `explain`: one request, what was promised, where its time went, and who made it late."""
