package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	api "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

type object = map[string]any

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

type jwtKey struct {
	alg, id, use string
	signer       crypto.Signer
}

func newKey(alg, id string) *jwtKey {
	k := &jwtKey{alg: alg, id: id, use: "jwt-svid"}
	curves := map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}
	switch {
	case curves[alg] != nil:
		k.signer = must(ecdsa.GenerateKey(curves[alg], rand.Reader))
	case alg == "EdDSA":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		k.signer = must(private, err)
	default:
		k.signer = must(rsa.GenerateKey(rand.Reader, 2048))
	}
	return k
}

func jwks(keys ...*jwtKey) []byte {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.signer.Public(), KeyID: k.id, Use: k.use})
	}
	return must(json.Marshal(set))
}

func claims(sub string) object {
	now := time.Now().Unix()
	return object{"sub": sub, "aud": []string{audience}, "iat": now, "exp": now + 300}
}

// with changes fields; nil removes a field.
func with(fields, changes object) object {
	changed := object{}
	for _, from := range []object{fields, changes} {
		for name, value := range from {
			changed[name] = value
			if value == nil {
				delete(changed, name)
			}
		}
	}
	return changed
}

func base64url(bytes []byte) string { return base64.RawURLEncoding.EncodeToString(bytes) }

func part(fields object) string { return base64url(must(json.Marshal(fields))) }

// sign returns a token with these changes to the header.
func (k *jwtKey) sign(header, claims object) string {
	header = with(object{"alg": k.alg, "kid": k.id, "typ": "JWT"}, header)
	return k.signInput(part(header) + "." + part(claims))
}

func (k *jwtKey) signInput(input string) string {
	return input + "." + base64url(k.signature(input))
}

func (k *jwtKey) signature(input string) []byte {
	if k.alg == "EdDSA" {
		return must(k.signer.Sign(rand.Reader, []byte(input), crypto.Hash(0)))
	}
	hashes := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}
	hash := hashes[k.alg[2:]]
	digest := hash.New()
	digest.Write([]byte(input))
	sum := digest.Sum(nil)
	switch private := k.signer.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, sum)
		if err != nil {
			panic(err)
		}
		size := (private.Curve.Params().BitSize + 7) / 8
		signature := make([]byte, 2*size)
		r.FillBytes(signature[:size])
		s.FillBytes(signature[size:])
		return signature
	case *rsa.PrivateKey:
		if strings.HasPrefix(k.alg, "PS") {
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
			return must(private.Sign(rand.Reader, sum, options))
		}
		return must(private.Sign(rand.Reader, sum, hash))
	}
	panic("a key of another kind")
}

// authority issues X.509-SVIDs.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

type svid struct {
	id  string
	key *ecdsa.PrivateKey
	der []byte
}

func certificate(template, parent *x509.Certificate, public, private any) []byte {
	template.SerialNumber = must(rand.Int(rand.Reader, big.NewInt(1<<62)))
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	return must(x509.CreateCertificate(rand.Reader, template, parent, public, private))
}

func newAuthority() *authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "a CA"}, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:     []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
	der := certificate(template, template, key.Public(), key)
	return &authority{key, must(x509.ParseCertificate(der))}
}

func (a *authority) issue(id string) *svid {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "a workload"},
		URIs:        []*url.URL{must(url.Parse(id))},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return &svid{id, key, certificate(template, a.certificate, key.Public(), a.key)}
}

func (s *svid) proto(a *authority) *api.X509SVID {
	return &api.X509SVID{
		SpiffeId: s.id, X509Svid: s.der, Bundle: a.certificate.Raw,
		X509SvidKey: must(x509.MarshalPKCS8PrivateKey(s.key)),
	}
}

func (s *svid) tls() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{s.der}, PrivateKey: s.key}
}

// probe connects to the X.509 port, and returns the server's ID and the line that it writes.
func (e *env) probe(client *svid) (id, line string, err error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	connection, err := tls.DialWithDialer(dialer, "tcp", e.x509, &tls.Config{
		Certificates:       []tls.Certificate{client.tls()},
		InsecureSkipVerify: true, // The row checks the certificate.
	})
	if err != nil {
		return "", "", err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	if uris := connection.ConnectionState().PeerCertificates[0].URIs; len(uris) == 1 {
		id = uris[0].String()
	}
	text, err := io.ReadAll(connection)
	return id, strings.TrimSpace(string(text)), err
}

// presents waits until the X.509 port presents this ID.
func (e *env) presents(id string) error {
	return eventually(updateIn, func() error {
		presented, _, err := e.probe(e.ca.issue("spiffe://" + domain + "/probe"))
		if err == nil && presented != id {
			err = fmt.Errorf("the X.509 port presents %s, not %s", presented, id)
		}
		return err
	})
}
