package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net"
	"sync"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// agent is a Workload API server on grpc-go, with bundles from go-spiffe and tokens from go-jose.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	mutex   sync.Mutex
	key     *ecdsa.PrivateKey
	kid     string
	bundle  *jwtbundle.Bundle
	changed chan struct{}
	failure codes.Code
	// The security header that the client sent.
	header []string
}

func newAgent() *agent {
	a := &agent{bundle: jwtbundle.New(trustDomain), changed: make(chan struct{})}
	a.rotate("first")
	return a
}

func (a *agent) change(change func()) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) rotate(kid string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	a.change(func() {
		a.key, a.kid = key, kid
		a.bundle.AddJWTAuthority(kid, key.Public())
	})
}

func (a *agent) FetchJWTSVID(ctx context.Context, request *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.header = metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io")
	if a.failure != codes.OK {
		return nil, status.Error(a.failure, "error of the test")
	}
	answer := &workload.JWTSVIDResponse{}
	for _, entry := range [][2]string{{web, "internal"}, {ops, "external"}} {
		if request.SpiffeId == "" || request.SpiffeId == entry[0] {
			token := sign(jose.ES256, a.key, a.kid, claims(object{"sub": entry[0], "aud": request.Audience}), nil)
			answer.Svids = append(answer.Svids, &workload.JWTSVID{SpiffeId: entry[0], Svid: token, Hint: entry[1]})
		}
	}
	return answer, nil
}

func (a *agent) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	for {
		a.mutex.Lock()
		failure, changed := a.failure, a.changed
		text, err := a.bundle.Marshal()
		a.mutex.Unlock()
		if failure != codes.OK {
			return status.Error(failure, "error of the test")
		}
		if err != nil {
			return err
		}
		message := &workload.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://" + domain: text}}
		if err := stream.Send(message); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func serveAgent(a *agent, network, address string) (*grpc.Server, string, error) {
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, "", err
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	go server.Serve(listener)
	return server, listener.Addr().String(), nil
}

// sourceRows runs JwtSource on a Workload API server of grpc-go.
func sourceRows(driver *driver) {
	a := newAgent()
	server, address, err := serveAgent(a, "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer func() { server.Stop() }()
	row("go-source-start", "JwtSource starts on grpc-go", func() error {
		answer, err := driver.do("source", object{"source": "grpc-go", "endpoint": "tcp://" + address})
		if err != nil {
			return err
		}
		return equal("failure", answer["failed"], nil)
	})
	state := func() (object, error) { return driver.do("state", object{"source": "grpc-go"}) }
	fetch := func(arguments object) (object, error) {
		all := object{"source": "grpc-go", "audience": audience}
		for name, value := range arguments {
			all[name] = value
		}
		return driver.do("fetch", all)
	}
	check := func(arguments object) error {
		answer, err := fetch(arguments)
		if err != nil {
			return err
		}
		result, err := driver.do("check", object{"source": "grpc-go", "audience": audience, "token": answer["token"]})
		if err != nil {
			return fmt.Errorf("%w, after %v", err, answer["failed"])
		}
		return equal("ID", result["id"], answer["id"])
	}
	row("go-source-fetch", "the fetched bundles verify a fetched token", func() error {
		return check(object{})
	})
	row("go-source-header", "the security header is sent once", func() error {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		return equal("header", fmt.Sprint(a.header), "[true]")
	})
	row("go-source-id", "the requested SPIFFE ID is sent", func() error {
		answer, err := fetch(object{"id": ops})
		if err != nil {
			return err
		}
		return equal("ID", answer["id"], any(ops))
	})
	row("go-source-hint", "the hint selects the identity", func() error {
		answer, err := fetch(object{"hint": "external"})
		if err != nil {
			return err
		}
		return equal("ID", answer["id"], any(ops))
	})
	row("go-source-rotate", "the source follows a rotation", func() error {
		a.rotate("second")
		if err := until(func() error {
			now, err := state()
			if err != nil {
				return err
			}
			return equal("keys", fmt.Sprint(now["domains"]), "map[example.org:[first second]]")
		}); err != nil {
			return err
		}
		return check(object{})
	})
	reported := func(code codes.Code, withdrawn bool) {
		row("go-source-status-"+code.String(), "the status is reported, the source recovers", func() error {
			a.change(func() { a.failure = code })
			answer, err := fetch(object{})
			if err != nil {
				return err
			}
			if err := equal("code", answer["code"], any(float64(code))); err != nil {
				return err
			}
			if withdrawn {
				if err := until(func() error {
					now, err := state()
					if err != nil {
						return err
					}
					return equal("withdrawn", now["withdrawn"], any(true))
				}); err != nil {
					return err
				}
			}
			a.change(func() { a.failure = codes.OK })
			return until(func() error {
				now, err := state()
				if err != nil {
					return err
				}
				if err := equal("withdrawn", now["withdrawn"], any(false)); err != nil {
					return err
				}
				return check(object{})
			})
		})
	}
	reported(codes.PermissionDenied, true)
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.ResourceExhausted, codes.Unknown} {
		reported(code, false)
	}
	row("go-source-restart", "the source follows a restarted grpc-go server", func() error {
		server.Stop()
		a.rotate("third")
		server, _, err = serveAgent(a, "tcp", address)
		if err != nil {
			return err
		}
		return until(func() error {
			now, err := state()
			if err != nil {
				return err
			}
			return equal("keys", fmt.Sprint(now["domains"]), "map[example.org:[first second third]]")
		})
	})
	row("go-source-graceful", "the source reconnects after a GOAWAY of grpc-go", func() error {
		// A graceful stop waits for the stream, which ends with an error status.
		done := make(chan struct{})
		go func() { server.GracefulStop(); close(done) }()
		a.change(func() { a.failure = codes.Unavailable })
		<-done
		a.change(func() { a.failure = codes.OK })
		server, _, err = serveAgent(a, "tcp", address)
		if err != nil {
			return err
		}
		return until(func() error { return check(object{}) })
	})
}
