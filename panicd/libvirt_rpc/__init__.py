"""libvirt's own RPC on trio: what panicd asks of libvirt, and what it hears from it.

`xdr` and `wire` are bytes and messages, `protocol` and `requests` what they mean: pure.
`connection` is one connection, `client` the few that panicd keeps.
"""
