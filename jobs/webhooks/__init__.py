"""Webhooks in the form of Standard Webhooks (https://www.standardwebhooks.com), which OpenAI's have too.

`signing` has the secrets and signatures, `targets` the URLs and addresses that may be called, `sending` one
request, `outcome` its outcome, and `retries` when to try again. Nothing here knows the database:
`jobs.use_cases.webhooks` and `jobs.use_cases.deliveries` do, and `jobs.webhook_delivery` sends what is due.
"""
