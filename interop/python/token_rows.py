"""Our tokens verified by py-spiffe and PyJWT, and their tokens verified by our validator."""

import json
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from spiffe import JwtBundle, JwtSvid, TrustDomain

from harness import ALGORITHMS, AUDIENCE, DOMAIN, WEB, accepted_by, equal, raises, read_cases, row


def run(driver):
    driver.do("issuer", issuer="tokens", trust_domain=DOMAIN)
    driver.all_algorithms("tokens")
    keys = driver.do("keys", issuer="tokens")
    ours(driver, keys)
    theirs(driver)


def ours(driver, keys):
    for form in ["jwks", "spiffe_bundle"]:

        def read():
            bundle = JwtBundle.parse(TrustDomain(DOMAIN), keys[form].encode())
            equal("keys", sorted(bundle.jwt_authorities), sorted(keys["kids"]))

        row(f"py-bundle-{form}", "py-spiffe reads our keys", read)

        def read_pyjwt():
            found = [key.key_id for key in jwt.PyJWKSet.from_json(keys[form]).keys]
            equal("keys", sorted(found), sorted(keys["kids"]))

        row(f"py-jwkset-{form}", "PyJWT reads our keys", read_pyjwt)

    bundle = JwtBundle.parse(TrustDomain(DOMAIN), keys["jwks"].encode())
    jwks = jwt.PyJWKSet.from_json(keys["jwks"])
    for case in read_cases():
        token = driver.token("tokens", case["spec"])
        id = case["spec"].get("claims", {}).get("sub", WEB)

        def by_spiffe():
            def parse():
                return JwtSvid.parse_and_validate(token, bundle, {AUDIENCE})

            ours = driver.validate(token, jwks=keys["jwks"])
            equal("our reason", ours.get("rejected"), case.get("rejected"))
            if accepted_by(case, "py-spiffe"):
                equal("ID", str(parse().spiffe_id), id)
            else:
                raises(parse)

        row(f"py-token-{case['case']}", "our result and py-spiffe's result on our token", by_spiffe)

        def by_pyjwt():
            def decode():
                key = jwks[jwt.get_unverified_header(token)["kid"]]
                return jwt.decode(
                    token,
                    key.key,
                    algorithms=ALGORITHMS,
                    audience=AUDIENCE,
                    leeway=10,
                    options={"require": ["exp", "aud", "sub"]},
                )

            if accepted_by(case, "pyjwt"):
                equal("ID", decode()["sub"], id)
            else:
                raises(decode)

        row(f"py-jwt-{case['case']}", "PyJWT's result on our token", by_pyjwt)


def theirs(driver):
    private = {}
    rsa_key = rsa.generate_private_key(65537, 2048)
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    jwks = []
    for algorithm in ALGORITHMS:
        curve = curves.get(algorithm)
        key = ec.generate_private_key(curve) if curve else rsa_key
        private[algorithm] = key
        kind = ECAlgorithm if curve else RSAAlgorithm
        jwk = kind.to_jwk(key.public_key(), as_dict=True)
        jwks.append({**jwk, "kid": f"kid-{algorithm}"})
    plain = json.dumps({"keys": jwks})
    labelled = json.dumps({"keys": [{**jwk, "use": "jwt-svid"} for jwk in jwks]})

    def claims(**changes):
        now = int(time.time())
        all = {"sub": WEB, "aud": [AUDIENCE], "iat": now, "exp": now + 300, **changes}
        return {name: value for name, value in all.items() if value is not None}

    def sign(algorithm="ES256", key=None, kid=None, headers=None, **changes):
        headers = {"kid": kid or f"kid-{algorithm}", **(headers or {})}
        key = key or private[algorithm]
        return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)

    for algorithm in ALGORITHMS:
        for form, keys in [("jwks", {"jwks": plain}), ("spiffe", {"spiffe_bundle": labelled})]:

            def accepted():
                answer = driver.validate(sign(algorithm), **keys)
                equal("ID", answer.get("id"), WEB)
                equal("number of keys", answer["keys"], len(ALGORITHMS))

            what = "our validator accepts PyJWT's token with PyJWT's JWK"
            row(f"py-signed-{form}-{algorithm}", what, accepted)

    now = int(time.time())
    good = [
        ("aud-string", sign(aud=AUDIENCE)),
        ("aud-list", sign(aud=["other", AUDIENCE])),
        ("exp-float", sign(exp=now + 60.5)),
        ("nbf-past", sign(nbf=now - 60)),
        ("without-iat", sign(iat=None)),
        ("typ-JOSE", sign(headers={"typ": "JOSE"})),
        ("unicode-claim", sign(name="日本語 \U0001f600")),
    ]
    for name, token in good:

        def accepted_token():
            equal("ID", driver.validate(token, jwks=plain).get("id"), WEB)

        row(f"py-accepted-{name}", "our validator accepts PyJWT's token", accepted_token)

    other = ec.generate_private_key(ec.SECP256R1())
    rs_as_es = sign("RS256", kid="kid-ES256")
    # PyJWT does not accept PEM, DER or JWK text as a secret.
    point = private["ES256"].public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    bad = [
        ("expired", sign(exp=now - 60), "expired"),
        ("not-yet-valid", sign(nbf=now + 60), "not-yet-valid"),
        ("other-audience", sign(aud="other"), "audience"),
        ("without-audience", sign(aud=None), "claims"),
        ("without-expiry", sign(exp=None), "claims"),
        ("without-subject", sign(sub=None), "claims"),
        ("other-domain", sign(sub="spiffe://example.com/web"), "trust-domain-unknown"),
        ("forged", sign(key=other), "signature"),
        ("key-of-another-curve", sign(kid="kid-ES384"), "key-unfit"),
        ("key-of-another-type", rs_as_es, "key-unfit"),
        ("unknown-key", sign(kid="kid-of-nothing"), "key-unknown"),
        ("none", jwt.encode(claims(), None, "none", {"kid": "kid-ES256"}), "malformed-token"),
        ("HS256-by-public-key", jwt.encode(claims(), point, "HS256", {"kid": "kid-ES256"}), "algorithm"),
        ("EdDSA", sign("EdDSA", ed25519.Ed25519PrivateKey.generate(), "kid-ES256"), "algorithm"),
        ("crit", sign(headers={"crit": ["x"], "x": 1}), "header"),
        ("typ-access-token", sign(headers={"typ": "at+jwt"}), "header"),
    ]
    for name, token, reason in bad:

        def rejected():
            equal("reason", driver.validate(token, jwks=plain).get("rejected"), reason)

        row(f"py-hostile-{name}", "our validator rejects PyJWT's token", rejected)
