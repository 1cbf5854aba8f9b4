"""How embeddings and KV pages pass from the actor that made them to the one that needs them.

`ticket` names a tensor, `lease` keeps it at its producer, `service` hands it out, `fetcher` gets it over the best
`lanes` that both sides have. Import from the modules: nothing is imported here.
"""
