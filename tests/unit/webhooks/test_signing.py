"""Signatures are those of the standard, and OpenAI's client accepts them."""

from __future__ import annotations

import base64
import time

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from jobs.webhooks import signing

#: The test vector of Standard Webhooks' own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def verify(headers: dict[str, str], body: bytes, secret: str) -> None:
    OpenAI(api_key="unused").webhooks.verify_signature(body, headers, secret=secret)


def test_the_standards_test_vector() -> None:
    assert signing.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY, [SECRET]) == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_new_secret_has_the_standards_form() -> None:
    secret = signing.new_secret()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert signing.new_secret() != secret
    assert signing.hint(secret) == f"{secret[:10]}…"


def test_two_secrets_verify_with_either_and_no_other() -> None:
    old, new, other = (signing.new_secret() for _ in range(3))
    headers = signing.headers("evt_1", int(time.time()), BODY, [new, old])
    verify(headers, BODY, old)
    verify(headers, BODY, new)
    with pytest.raises(InvalidWebhookSignatureError):
        verify(headers, BODY, other)
    with pytest.raises(InvalidWebhookSignatureError):
        verify(headers, BODY + b" ", new)
    with pytest.raises(InvalidWebhookSignatureError):
        verify({**headers, "webhook-id": "evt_2"}, BODY, new)
