"""Who signed a request: forged, truncated, re-encoded and old ones are nobody's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents.spec import SignatureScheme
from tests.signing import NOON, SECRET, SIGNERS, TIMED, TOKENS, asked, plain, secret_of, standard
from webhooks.providers import PROVIDERS, parse
from webhooks.providers.base import BadSignature, Event

BODY = b'{"type": "issue.opened", "\xc3\xa4": [1, 2]}'


def signer_of(provider: str, headers: dict[str, str], body: bytes = BODY, **changes: Any) -> str | None:
    secrets = {"other": "nobody's", "default": secret_of(provider)}
    return PROVIDERS[provider].signed_by(asked(provider, headers, body, **changes), secrets)


@pytest.mark.parametrize("provider", [*SIGNERS, *TOKENS])
def test_the_secret_that_signed_is_named(provider: str) -> None:
    assert signer_of(provider, (SIGNERS | TOKENS)[provider](BODY, NOON)) == "default"


def test_every_provider_has_its_signature_tried_here() -> None:
    assert {*SIGNERS, *TOKENS, "test"} == set(PROVIDERS)


@pytest.mark.parametrize("provider", SIGNERS)
@pytest.mark.parametrize(
    "body",
    [b"", BODY[:-1], BODY + b"\n", BODY.replace(b"opened", b"closed"), json.dumps(json.loads(BODY)).encode()],
    ids=["emptied", "truncated", "longer", "changed", "re-encoded"],
)
def test_other_bytes_than_those_that_were_signed_are_nobodys(provider: str, body: bytes) -> None:
    assert signer_of(provider, SIGNERS[provider](BODY, NOON), body) is None


@pytest.mark.parametrize("provider", [*SIGNERS, *TOKENS])
@pytest.mark.parametrize(
    "forge", [lambda it: "", lambda it: it[:-1], lambda it: it + "0", lambda it: it[::-1], lambda _: "é\ud800"]
)
def test_a_forged_signature_is_nobodys(provider: str, forge: Any) -> None:
    for header, value in (headers := (SIGNERS | TOKENS)[provider](BODY, NOON)).items():
        assert signer_of(provider, {**headers, header: forge(value)}) is None
        assert signer_of(provider, {name: kept for name, kept in headers.items() if name != header}) is None


@pytest.mark.parametrize("provider", [*SIGNERS, *TOKENS])
@pytest.mark.parametrize("secrets", [{}, {"default": ""}, {"default": " \n\n"}, {"default": "another"}])
def test_without_its_secret_nothing_is_signed(provider: str, secrets: dict[str, str]) -> None:
    headers = (SIGNERS | TOKENS)[provider](BODY, NOON)
    assert PROVIDERS[provider].signed_by(asked(provider, headers, BODY), secrets) is None


@pytest.mark.parametrize("provider", [*SIGNERS, *TOKENS])
def test_each_of_several_live_secrets_is_good(provider: str) -> None:
    request = asked(provider, (SIGNERS | TOKENS)[provider](BODY, NOON), BODY)
    secrets = {"default": f"a-new-one\r\n\n  {secret_of(provider)}  \n"}
    assert PROVIDERS[provider].signed_by(request, secrets) == "default"


@pytest.mark.parametrize("provider", TIMED)
@pytest.mark.parametrize(("seconds", "signer"), [(-301, None), (-299, "default"), (299, "default"), (301, None)])
def test_a_time_that_is_signed_is_good_for_five_minutes(provider: str, seconds: int, signer: str | None) -> None:
    headers = SIGNERS[provider](BODY, NOON.replace(microsecond=0) + timedelta(seconds=seconds))
    assert signer_of(provider, headers, received_at=NOON.replace(microsecond=0)) == signer


@pytest.mark.parametrize("provider", [name for name in TIMED if name != "hmac"])
def test_an_old_signature_does_not_get_younger_by_what_is_new_beside_it(provider: str) -> None:
    old, new = SIGNERS[provider](BODY, NOON - timedelta(hours=1)), SIGNERS[provider](BODY, NOON)
    assert [signer_of(provider, {**old, header: new[header]}) for header in old] == [None] * len(old)


def test_an_old_signature_does_not_get_younger_by_a_new_time_in_its_own_header() -> None:
    old, new = (SIGNERS["hmac"](BODY, at)["stripe-signature"] for at in (NOON - timedelta(hours=1), NOON))
    assert signer_of("hmac", {"stripe-signature": f"{new.partition(',v1')[0]},v1{old.partition(',v1')[2]}"}) is None


def test_a_token_is_taken_from_either_header_of_a_generic_sender() -> None:
    assert signer_of("generic", {"x-webhook-token": SECRET}) == "default"
    assert signer_of("generic", {"authorization": f"bearer {SECRET}"}) == "default"
    assert signer_of("generic", {"authorization": f"Basic {SECRET}"}) is None


def test_nobody_signs_a_request_made_by_hand() -> None:
    assert PROVIDERS["test"].signed_by(asked("test", {}, BODY), {"default": SECRET}) is None


def test_mintlify_signs_under_two_names() -> None:
    assert signer_of("mintlify", plain("mintlify-signature")(BODY, NOON)) == "default"


def test_the_documented_example_of_standardwebhooks_verifies() -> None:
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    received_at = datetime.fromtimestamp(1614265330, UTC)
    assert signer_of("standardwebhooks", headers, body, received_at=received_at) == "default"
    under_svix = {name.replace("webhook-", "svix-"): value for name, value in headers.items()}
    assert signer_of("standardwebhooks", under_svix, body, received_at=received_at) == "default"


def test_a_standard_webhook_may_be_signed_with_a_key_of_which_the_public_half_is_kept() -> None:
    key = Ed25519PrivateKey.generate()
    kept = "whpk_" + base64.b64encode(key.public_key().public_bytes_raw()).decode()
    headers = standard(BODY)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + BODY
    headers["webhook-signature"] = "v1a," + base64.b64encode(key.sign(signed)).decode()
    provider = PROVIDERS["standardwebhooks"]
    assert provider.signed_by(asked("standardwebhooks", headers, BODY), {"default": kept}) == "default"
    assert provider.signed_by(asked("standardwebhooks", headers, BODY + b" "), {"default": kept}) is None
    assert provider.signed_by(asked("standardwebhooks", standard(BODY), BODY), {"default": kept}) is None


@pytest.mark.parametrize(
    ("scheme", "headers"),
    [
        # Shopify
        (
            SignatureScheme(header="X-Shopify-Hmac-Sha256", encoding="base64"),
            {"x-shopify-hmac-sha256": "{sha256_base64}"},
        ),
        # Bitbucket, and GitHub's older header
        (SignatureScheme(header="X-Hub-Signature", prefix="sha256="), {"x-hub-signature": "sha256={sha256_hex}"}),
        (
            SignatureScheme(header="X-Hub-Signature", prefix="sha1=", algorithm="sha1"),
            {"x-hub-signature": "sha1={sha1_hex}"},
        ),
        (SignatureScheme(header="Sign", algorithm="sha512"), {"sign": "{sha512_hex}"}),
    ],
)
def test_an_hmac_is_looked_for_as_its_source_says(scheme: SignatureScheme, headers: dict[str, str]) -> None:
    digests: dict[str, str] = {}
    for algorithm in ("sha1", "sha256", "sha512"):
        digest = hmac.new(SECRET.encode(), BODY, algorithm)
        assert digest.digest_size == getattr(hashlib, algorithm)().digest_size
        digests |= {f"{algorithm}_hex": digest.hexdigest()}
        digests |= {f"{algorithm}_base64": base64.b64encode(digest.digest()).decode()}
    sent = {name: value.format(**digests) for name, value in headers.items()}
    assert signer_of("hmac", sent, scheme=scheme) == "default"
    assert signer_of("hmac", sent, BODY + b" ", scheme=scheme) is None


def test_an_hmac_may_cover_an_id_and_a_time_in_headers_of_their_own() -> None:
    sent_at = str(int(NOON.timestamp()))
    signature = hmac.new(SECRET.encode(), f"{sent_at}:e-1:".encode() + BODY, hashlib.sha256).hexdigest()
    scheme = SignatureScheme(
        header="Sig",
        timestamp_header="Sent",
        id_header="Event-Id",
        signed="{timestamp}:{id}:{body}",
        event_header="Kind",
    )
    headers = {"sig": signature.upper(), "sent": sent_at, "event-id": "e-1", "kind": "paid"}
    assert signer_of("hmac", headers, scheme=scheme) == "default"
    for name, other in {"sent": str(int(sent_at) + 1), "event-id": "e-2"}.items():
        assert signer_of("hmac", {**headers, name: other}, scheme=scheme) is None
    said = PROVIDERS["hmac"].parse(asked("hmac", headers, BODY, scheme=scheme))
    assert isinstance(said, Event)
    assert (said.event, said.external_id) == ("paid", "e-1")


def test_an_hmac_that_does_not_cover_the_body_is_none() -> None:
    signature = hmac.new(SECRET.encode(), b"always the same", hashlib.sha256).hexdigest()
    assert signer_of("hmac", {"sig": signature}, scheme=SignatureScheme(header="Sig", signed="always the same")) is None
    assert signer_of("hmac", {"sig": signature}, scheme=None) is None


def test_a_request_goes_the_whole_way_only_if_it_is_signed() -> None:
    body = json.dumps({"type": "invoice.paid"}).encode()
    request = asked("hmac", SIGNERS["hmac"](body, NOON), body)
    said = parse("hmac", request, {"default": SECRET})
    assert isinstance(said, Event)
    assert said.event == "invoice.paid"
    with pytest.raises(BadSignature, match=r"^signature validation failed$"):
        parse("hmac", request, {"default": "another"})
