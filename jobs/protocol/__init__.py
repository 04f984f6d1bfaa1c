"""The API's requests, responses, events and errors, without HTTP.

The web serves these shapes over HTTP. Nothing here imports Flask, so that whatever else accepts
questions or reports jobs can use the same code.
"""
