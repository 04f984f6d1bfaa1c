"""The transparency log's formats: Merkle tree, tiles, signed notes, checkpoints, proofs and entries.

Everything here is a function of bytes. It knows neither the database nor HTTP, so that an outsider's check
(`helixq jobs verify FILE`) runs the same code as the server. The formats are those of https://c2sp.org:
tlog-tiles, tlog-checkpoint, tlog-proof and signed-note.
"""
