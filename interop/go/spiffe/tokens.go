package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

var trustDomain = spiffeid.RequireTrustDomainFromString(domain)

var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512,
	jose.ES256, jose.ES384, jose.ES512,
	jose.PS256, jose.PS384, jose.PS512,
}

// tokenRows validates our tokens with go-spiffe and go-jose.
func tokenRows(driver *driver, cases []tokenCase) {
	driver.must("issuer", object{"issuer": "tokens", "trust_domain": domain})
	// A key is added to the bundle when it signs for the first time.
	for _, algorithm := range algorithms {
		driver.must("token", object{"issuer": "tokens", "id": web, "audience": audience,
			"spec": object{"algorithm": string(algorithm)}})
	}
	keys := driver.must("keys", object{"issuer": "tokens"})
	bundle, err := jwtbundle.Parse(trustDomain, []byte(keys["jwks"].(string)))
	row("go-bundle-jwks", "go-spiffe reads our JWKS", func() error {
		if err != nil {
			return err
		}
		return equal("number of keys", len(bundle.JWTAuthorities()), len(keys["kids"].([]any)))
	})
	row("go-bundle-spiffe", "go-spiffe reads our SPIFFE bundle", func() error {
		parsed, err := spiffebundle.Parse(trustDomain, []byte(keys["spiffe_bundle"].(string)))
		if err != nil {
			return err
		}
		if !parsed.JWTBundle().Equal(bundle) {
			return errors.New("the keys differ from those of the JWKS")
		}
		return nil
	})
	for _, c := range cases {
		row("go-token-"+c.Case, "our result and go-spiffe's result on our token", func() error {
			token, err := driver.token("tokens", web, audience, c.Spec)
			if err != nil {
				return err
			}
			ours, err := validate(driver, object{"jwks": keys["jwks"]}, token)
			if err != nil {
				return err
			}
			rejected, _ := ours["rejected"].(string)
			if err := equal("our reason", rejected, c.Rejected); err != nil {
				return err
			}
			svid, err := jwtsvid.ParseAndValidate(token, bundle, []string{audience})
			if !c.acceptedBy("go-spiffe") {
				if err == nil {
					return errors.New("accepted, expected a rejection")
				}
				return nil
			}
			if err != nil {
				return err
			}
			if sub, changed := claim(c.Spec, "sub"); changed {
				return equal("ID", svid.ID.String(), sub)
			}
			return equal("ID", svid.ID.String(), web)
		})
	}
	for _, algorithm := range algorithms {
		row("go-jose-"+string(algorithm), "go-jose verifies our token with our JWK", func() error {
			token, err := driver.token("tokens", web, audience, object{"algorithm": string(algorithm)})
			if err != nil {
				return err
			}
			parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{algorithm})
			if err != nil {
				return err
			}
			key, is := bundle.FindJWTAuthority(parsed.Headers[0].KeyID)
			if !is {
				return errors.New("the key is not in the bundle")
			}
			var claims jwt.Claims
			if err := parsed.Claims(key, &claims); err != nil {
				return err
			}
			return claims.Validate(jwt.Expected{Subject: web, AnyAudience: jwt.Audience{audience}})
		})
	}
}

func claim(spec object, name string) (string, bool) {
	claims, _ := spec["claims"].(object)
	value, is := claims[name].(string)
	return value, is
}

// signedByGo validates go-jose's tokens with our validator.
func signedByGo(driver *driver) {
	signers := map[jose.SignatureAlgorithm]crypto.Signer{}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	curves := map[jose.SignatureAlgorithm]elliptic.Curve{
		jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521(),
	}
	bundle := jwtbundle.New(trustDomain)
	for _, algorithm := range algorithms {
		var signer crypto.Signer = rsaKey
		if curve, is := curves[algorithm]; is {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				panic(err)
			}
			signer = key
		}
		signers[algorithm] = signer
		if err := bundle.AddJWTAuthority("kid-"+string(algorithm), signer.Public()); err != nil {
			panic(err)
		}
	}
	jwks, err := bundle.Marshal()
	if err != nil {
		panic(err)
	}
	full, err := spiffebundle.FromJWTBundle(bundle).Marshal()
	if err != nil {
		panic(err)
	}
	for _, algorithm := range algorithms {
		token := sign(algorithm, signers[algorithm], "kid-"+string(algorithm), claims(nil), nil)
		for form, keys := range map[string]object{
			"jwks":   {"jwks": string(jwks)},
			"spiffe": {"spiffe_bundle": string(full)},
		} {
			name := fmt.Sprintf("go-signed-%s-%s", form, algorithm)
			row(name, "our validator accepts go-jose's token with go-spiffe's bundle", func() error {
				answer, err := validate(driver, keys, token)
				if err != nil {
					return err
				}
				if err := equal("number of keys", answer["keys"], any(float64(len(algorithms)))); err != nil {
					return err
				}
				return equal("ID", answer["id"], any(web))
			})
		}
	}

	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	es256 := signers[jose.ES256]
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	embedded := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT")
	hostile := []struct{ name, token, reason string }{
		{"expired", sign(jose.ES256, es256, "kid-ES256", claims(object{"exp": time.Now().Unix() - 60}), nil), "expired"},
		{"not-yet-valid", sign(jose.ES256, es256, "kid-ES256", claims(object{"nbf": time.Now().Unix() + 60}), nil), "not-yet-valid"},
		{"other-audience", sign(jose.ES256, es256, "kid-ES256", claims(object{"aud": "other"}), nil), "audience"},
		{"other-domain", sign(jose.ES256, es256, "kid-ES256", claims(object{"sub": "spiffe://example.com/web"}), nil), "trust-domain-unknown"},
		{"forged", sign(jose.ES256, other, "kid-ES256", claims(nil), nil), "signature"},
		{"key-of-another-algorithm", sign(jose.ES256, other, "kid-ES384", claims(nil), nil), "key-unfit"},
		{"unknown-key", sign(jose.ES256, other, "kid-of-nothing", claims(nil), nil), "key-unknown"},
		{"EdDSA", sign(jose.EdDSA, edwards, "kid-ES256", claims(nil), nil), "algorithm"},
		{"HS256-by-public-key", sign(jose.HS256, []byte(jwks), "kid-ES256", claims(nil), nil), "algorithm"},
		{"embedded-key", sign(jose.ES256, other, "kid-ES256", claims(nil), embedded), "header"},
	}
	for _, h := range hostile {
		row("go-hostile-"+h.name, "our validator rejects go-jose's token", func() error {
			answer, err := validate(driver, object{"jwks": string(jwks)}, h.token)
			if err != nil {
				return err
			}
			return equal("reason", answer["rejected"], any(h.reason))
		})
	}
	accepted := []struct {
		name string
		with object
	}{
		{"aud-string", object{"aud": audience}},
		{"aud-list", object{"aud": []string{"other", audience}}},
		{"exp-float", object{"exp": float64(time.Now().Unix()) + 60.5}},
		{"nbf-past", object{"nbf": time.Now().Unix() - 60}},
		{"without-iat", object{"iat": nil}},
		{"unicode-claim", object{"name": "日本語 <&>"}},
	}
	for _, a := range accepted {
		row("go-accepted-"+a.name, "our validator accepts go-jose's token", func() error {
			token := sign(jose.ES256, es256, "kid-ES256", claims(a.with), nil)
			answer, err := validate(driver, object{"jwks": string(jwks)}, token)
			if err != nil {
				return err
			}
			return equal("ID", answer["id"], any(web))
		})
	}
}

func validate(driver *driver, keys object, token string) (object, error) {
	all := object{"trust_domain": domain, "audience": audience, "token": token}
	for name, value := range keys {
		all[name] = value
	}
	return driver.do("validate", all)
}

func claims(with object) object {
	now := time.Now().Unix()
	all := object{"sub": web, "aud": []string{audience}, "iat": now, "exp": now + 300}
	for name, value := range with {
		if value == nil {
			delete(all, name)
		} else {
			all[name] = value
		}
	}
	return all
}

func sign(algorithm jose.SignatureAlgorithm, key any, kid string, claims object, options *jose.SignerOptions) string {
	if options == nil {
		options = (&jose.SignerOptions{}).WithType("JWT")
	}
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: algorithm,
		Key:       jose.JSONWebKey{Key: key, KeyID: kid},
	}, options)
	if err != nil {
		panic(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		panic(err)
	}
	return token
}
