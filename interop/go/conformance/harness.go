package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// serveHarness is a harness of go-spiffe.
func serveHarness() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() { <-ctx.Done(); os.Exit(0) }()
	x509 := must(workloadapi.NewX509Source(ctx))
	// The first call of the control port creates the source, because some rows have no bundles.
	source := sync.OnceValues(func() (*workloadapi.JWTSource, error) {
		starting, cancel := context.WithTimeout(ctx, 8*time.Second)
		defer cancel()
		return workloadapi.NewJWTSource(starting)
	})
	tlsPort := must(net.Listen("tcp", "127.0.0.1:0"))
	control := must(net.Listen("tcp", "127.0.0.1:0"))
	fmt.Printf("SPIFFE_HARNESS_VERSION=1\nSPIFFE_X509_PORT=%d\nSPIFFE_CONTROL_PORT=%d\nREADY\n",
		tlsPort.Addr().(*net.TCPAddr).Port, control.Addr().(*net.TCPAddr).Port)

	config := tlsconfig.MTLSServerConfig(x509, x509, tlsconfig.AuthorizeAny())
	go serveTLS(tls.NewListener(tlsPort, config))
	serve("/v1/jwt/validate", func(r struct{ Token, Audience string }) (object, error) {
		source, err := source()
		if err != nil {
			return nil, err
		}
		svid, err := jwtsvid.ParseAndValidate(r.Token, source, []string{r.Audience})
		if err != nil {
			return nil, rejection{err}
		}
		return object{"spiffe_id": svid.ID.String(), "claims": svid.Claims}, nil
	})
	serve("/v1/jwt/fetch", func(r struct {
		Audience []string
		SPIFFEID string `json:"spiffe_id"`
	}) (object, error) {
		source, err := source()
		if err != nil {
			return nil, err
		}
		params := jwtsvid.Params{Audience: r.Audience[0], ExtraAudiences: r.Audience[1:]}
		if r.SPIFFEID != "" {
			params.Subject = spiffeid.RequireFromString(r.SPIFFEID)
		}
		svid, err := source.FetchJWTSVID(ctx, params)
		if err != nil {
			return nil, err
		}
		entry := object{"spiffe_id": svid.ID.String(), "token": svid.Marshal(), "hint": svid.Hint}
		return object{"svids": []any{entry}}, nil
	})
	serve("/v1/x509/dial", func(r struct{ Address string }) (object, error) {
		tcp, err := net.Dial("tcp", r.Address)
		if err != nil {
			return nil, err
		}
		defer tcp.Close()
		client := tls.Client(tcp, tlsconfig.MTLSClientConfig(x509, x509, tlsconfig.AuthorizeAny()))
		if err := client.Handshake(); err != nil {
			return nil, rejection{err}
		}
		id, err := x509svid.IDFromCert(client.ConnectionState().PeerCertificates[0])
		return object{"spiffe_id": id.String()}, err
	})
	panic(http.Serve(control, nil))
}

type rejection struct{ error }

func serve[R any](path string, handle func(R) (object, error)) {
	http.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var request R
		err := json.NewDecoder(r.Body).Decode(&request)
		var fields object
		if err == nil {
			fields, err = handle(request)
		}
		code, status := 200, "ok"
		var rejected rejection
		if errors.As(err, &rejected) {
			code, status = 422, "rejected"
		} else if err != nil {
			code, status = 500, "error"
		}
		if err != nil {
			fields = object{"message": err.Error()}
		}
		fields["status"] = status
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(fields)
	})
}

func serveTLS(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer connection.Close()
			client := connection.(*tls.Conn)
			if client.Handshake() != nil {
				return
			}
			if id, err := x509svid.IDFromCert(client.ConnectionState().PeerCertificates[0]); err == nil {
				fmt.Fprintln(client, id)
			}
		}()
	}
}
