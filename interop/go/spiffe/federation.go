package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	partner    = "partner.example"
	partnerWeb = "spiffe://partner.example/web"
	endpointID = "spiffe://partner.example/bundles"
)

// authority is a CA that signs the certificates of bundle endpoints.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newAuthority() (*authority, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "interop"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: partner}},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{key, certificate}, err
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}))
}

// serve serves a bundle endpoint with a new certificate, and returns its URL.
func (a *authority) serve(handler http.Handler, dns []string, uris []*url.URL) (string, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     dns,
		URIs:         uris,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return "", err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		return "", err
	}
	// The handshake of two rows fails.
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	go server.Serve(listener)
	return fmt.Sprintf("https://localhost:%d/", listener.Addr().(*net.TCPAddr).Port), nil
}

// federationRows polls go-spiffe's federation handler with HttpsBundles, in both profiles.
func federationRows(driver *driver) {
	if err := federationRowsOf(driver); err != nil {
		row("h12-go-setup", "go-spiffe's federation handler serves our bundle", func() error { return err })
	}
}

func federationRowsOf(driver *driver) error {
	driver.must("issuer", object{"issuer": "partner", "trust_domain": partner})
	token, err := driver.token("partner", partnerWeb, audience, object{})
	if err != nil {
		return err
	}
	keys := driver.must("keys", object{"issuer": "partner"})
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	trustDomain := spiffeid.RequireTrustDomainFromString(partner)
	bundle, err := spiffebundle.Parse(trustDomain, []byte(keys["spiffe_bundle"].(string)))
	if err != nil {
		return err
	}
	bundle.AddX509Authority(ca.certificate)
	bundle.SetRefreshHint(time.Minute)
	document, err := bundle.Marshal()
	if err != nil {
		return err
	}
	handler, err := federation.NewHandler(trustDomain, bundle)
	if err != nil {
		return err
	}
	web, err := ca.serve(handler, []string{"localhost"}, nil)
	if err != nil {
		return err
	}
	svid, err := ca.serve(handler, nil, []*url.URL{{Scheme: "spiffe", Host: partner, Path: "/bundles"}})
	if err != nil {
		return err
	}

	poll := func(arguments object) (object, error) {
		all := object{"trust_domain": partner, "audience": audience, "token": token}
		for name, value := range arguments {
			all[name] = value
		}
		return driver.do("poll", all)
	}
	verifies := func(arguments object) func() error {
		return func() error {
			answer, err := poll(arguments)
			if err != nil {
				return err
			}
			if failure := answer["failed"]; failure != nil {
				return fmt.Errorf("%v", failure)
			}
			return equal("ID", answer["id"], any(partnerWeb))
		}
	}
	fails := func(arguments object) func() error {
		return func() error {
			answer, err := poll(arguments)
			if err == nil && answer["failed"] == nil {
				err = errors.New("the bundle was accepted, expected an error")
			}
			return err
		}
	}
	row("h12-go-web", "https_web reads go-spiffe's federation handler",
		verifies(object{"url": web, "roots": ca.pem()}))
	row("h12-go-web-root", "https_web rejects an unknown CA", fails(object{"url": web}))
	row("h12-go-spiffe", "https_spiffe reads go-spiffe's federation handler",
		verifies(object{"url": svid, "endpoint_id": endpointID, "bootstrap": string(document)}))
	row("h12-go-spiffe-id", "https_spiffe rejects another endpoint ID",
		fails(object{"url": svid, "endpoint_id": partnerWeb, "bootstrap": string(document)}))
	return nil
}
